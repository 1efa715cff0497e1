# SPDX-License-Identifier: GPL-3.0-only
"""Declare the settings that a single model may have of its own; parse and show `models:`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, cast

import msgspec

from modeld.config.kinds import INT32, TEXT, Kind, duration, or_none, whole
from modeld.config.setting import Setting
from modeld.config.values import BadValue, did_you_mean, parse_path, told
from modeld.domain.model import Isolation


class LoraSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter that a model is served with."""

    path: Path
    """Relative to `models_dir`, or absolute."""
    scale: float = 1.0


# ----------------------------------------------------------------------
# How LoRA adapters are written in the options of a model. Pure: nobody looks for the files here.

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


LORA = Kind("[{path, scale}, ...]", parse_lora, lambda value: json.dumps(lora_as_json(value)), lora_as_json)


# ----------------------------------------------------------------------
# What one model may have of its own.

DEPTH = whole(1, 1_000_000)
_TTL = or_none(duration(-INT32), ("forever", "never"), lambda seconds: cast("float", seconds) < 0)


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `models:`. None takes the daemon-wide setting of the same name.

    An option of that name without an annotation means what the setting means, and takes the same values.
    """

    aliases: tuple[str, ...] = ()
    """Further names of the model."""
    pinned: bool = False
    """Never evict it to make room."""
    ttl: Annotated[float | None, Setting(_TTL)] = None
    """Unload after so long without a request; `forever` (or -1): never by time."""
    preload: bool = False
    """Load it when the daemon starts."""
    llama_ctx: int | None = None
    llama_slots: int | None = None
    llama_threads: int | None = None
    llama_ngl: int | None = None
    llama_main_gpu: int | None = None
    llama_tensor_split: tuple[float, ...] | None = None
    llama_flash_attn: bool | None = None
    llama_kv_type: str | None = None
    llama_ubatch: int | None = None
    llama_mmap: bool | None = None
    llama_kv_unified: bool | None = None
    llama_context_shift: bool | None = None
    llama_prefix_cells: int | None = None
    isolation: Isolation | None = None
    lora: Annotated[tuple[LoraSettings, ...], Setting(LORA)] = ()
    """LoRA adapters, applied together: a list of `{path: adapter.gguf, scale: 0.8}`. A relative path is one
    in `models_dir`; `scale` is 1 where it is not given."""
    max_queue_depth: Annotated[int | None, Setting(DEPTH, zero_is_default=True)] = None
    """Requests that may wait for it."""
    fake: Annotated[str | None, Setting(TEXT)] = None
    """Script of the fake engine for it."""


def models_kind(options: Callable[[], Mapping[str, Setting]]) -> Kind:
    """The options of single models: a mapping or (in a flag or variable) its JSON text.

    `options` returns what one model may have. It is called at each use: what a model shares with the daemon
    is declared by the struct that has a setting of this kind.
    """
    return Kind(
        "JSON", lambda value: _parse_models(value, options()), lambda value: _show_models(value, options())
    )


def _parse_models(value: object, options: Mapping[str, Setting]) -> Mapping[str, ModelSettings]:
    if isinstance(value, str):
        try:
            value = cast("object", json.loads(value))
        except (ValueError, RecursionError):
            raise BadValue("it must be a JSON object of model names to options") from None
    if not isinstance(value, Mapping):
        raise BadValue(f"{told(value)} is no mapping of model names to options")
    problems: list[tuple[str, str]] = []
    models: dict[str, ModelSettings] = {}
    for name, given in cast("Mapping[object, object]", value).items():
        key = str(name)
        if not isinstance(name, str) or not name.strip():
            problems.append((key, "a model's name must be text; put it in quotes"))
        elif given is not None and not isinstance(given, Mapping):
            problems.append((key, f"{told(given)} is no mapping of options"))
        else:
            chosen = _chosen(key, cast("Mapping[object, object]", given or {}), options, problems)
            models[key] = msgspec.structs.replace(ModelSettings(), **chosen)
    if problems:
        raise BadValue("", problems)
    return models


def _chosen(
    name: str, given: Mapping[object, object], options: Mapping[str, Setting], problems: list[tuple[str, str]]
) -> dict[str, object]:
    chosen: dict[str, object] = {}
    for key, raw in given.items():
        option = options.get(str(key))
        if option is None:
            problems.append((f"{name}.{str(key)[:60]}", f"unknown key{did_you_mean(str(key), options)}"))
            continue
        try:
            if not option.is_unset(raw):
                chosen[option.name] = option.kind.parse(raw)
        except BadValue as error:
            problems += [(f"{name}.{option.name}", sentence) for _, sentence in error.problems]
    return chosen


def _show_models(value: object, options: Mapping[str, Setting]) -> str:
    """Write the options of single models as JSON, as far as they are not the default."""
    plain = {
        name: {
            key: option.kind.as_json(own)
            for key, option in options.items()
            if (own := cast("object", getattr(model, key))) != option.default
        }
        for name, model in cast("Mapping[str, ModelSettings]", value).items()
    }
    return json.dumps(plain) if plain else ""
