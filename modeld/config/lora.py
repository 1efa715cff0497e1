# SPDX-License-Identifier: GPL-3.0-only
"""How LoRA adapters are written in the options of a model. Pure: nobody looks for the files here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from modeld.config.nearest import did_you_mean
from modeld.config.settings import LoraSettings
from modeld.config.values import BadValue, Kind, parse_path, told

MOST_ADAPTERS = 8
"""Of one model. llama.cpp's graphs of some architectures have no room for the nodes of many."""
_GREATEST_SCALE = 1000.0
"""Beyond it nothing is left of the model itself, and sums overflow."""
_KEYS = ("path", "scale")


def parse_lora(value: object) -> tuple[LoraSettings, ...]:
    """Return the adapters of a list, or (from a flag or variable) of its JSON text."""
    if isinstance(value, str):
        try:
            value = cast("object", json.loads(value)) if value.strip() else []
        except (ValueError, RecursionError):
            raise BadValue(f"{told(value)} is no list; write [{{path: adapter.gguf, scale: 0.8}}]") from None
    if not isinstance(value, list | tuple):
        raise BadValue(f"{told(value)} is no list; write [{{path: adapter.gguf, scale: 0.8}}]")
    entries = cast("Sequence[object]", value)
    if len(entries) > MOST_ADAPTERS:
        raise BadValue(f"{len(entries)} adapters are too many; the most is {MOST_ADAPTERS}")
    return tuple(_adapter(number, entry) for number, entry in enumerate(entries, 1))


def _adapter(number: int, entry: object) -> LoraSettings:
    if not isinstance(entry, Mapping):
        raise BadValue(f"adapter {number}: {told(entry)} is no mapping; write {{path: adapter.gguf}}")
    options = {str(key): value for key, value in cast("Mapping[object, object]", entry).items()}
    for key in options:
        if key not in _KEYS:
            raise BadValue(f'adapter {number}: unknown key "{key[:60]}"{did_you_mean(key, _KEYS)}')
    try:
        path = _path(options.get("path"))
        scale = _scale(options.get("scale"))
    except BadValue as error:
        raise BadValue(f"adapter {number}: {error}") from None
    return LoraSettings(path=path, scale=scale)


def _path(value: object) -> Path:
    path = None if value is None else parse_path(value)
    if path is None:
        raise BadValue("it has no path; name its file")
    return path


def _scale(value: object) -> float:
    if value is None:
        return 1.0
    scale = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            scale = float(value)
        except (ValueError, OverflowError):
            scale = math.nan
    if not abs(scale) <= _GREATEST_SCALE:  # not a number is wrong as well
        raise BadValue(
            f"the scale {told(value)} is no number between -{_GREATEST_SCALE:g} and {_GREATEST_SCALE:g}"
        )
    return scale


def lora_as_json(value: object) -> list[dict[str, object]]:
    """Return adapters as JSON has them."""
    return [
        {"path": str(adapter.path), "scale": adapter.scale}
        for adapter in cast("Sequence[LoraSettings]", value)
    ]


LORA = Kind("[{path, scale}, ...]", parse_lora, lambda value: json.dumps(lora_as_json(value)))
