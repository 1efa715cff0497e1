# SPDX-License-Identifier: GPL-3.0-only
"""The settings that a single model may have of its own, and how they are read and told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec

from modeld.config.field import (
    CTX,
    DEPTH,
    FLASH,
    GPU,
    KV,
    NGL,
    PREFIX,
    SLOTS,
    SPLIT,
    THREADS,
    TTL,
    UBATCH,
    Field,
    is_unset,
    parse_isolation,
)
from modeld.config.settings import AUTO, LoraSettings, ModelSettings
from modeld.config.values import BOOL, LIST, TEXT, BadValue, Kind, did_you_mean, or_none, parse_path, told

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


LORA = Kind("[{path, scale}, ...]", parse_lora, lambda value: json.dumps(lora_as_json(value)))


# ----------------------------------------------------------------------

LLAMA_FIELDS: tuple[Field, ...] = (
    Field(
        "llama_ctx",
        CTX,
        "KV cells shared by all slots of a model; at most slots times its trained context. `auto`: as many "
        "as fit, see below.",
        zero_is_default=True,
    ),
    Field(
        "llama_slots", SLOTS, "Requests that one model decodes together; `auto` follows from its KV cells."
    ),
    Field(
        "llama_threads",
        THREADS,
        "CPU threads of a model; shared out while several models decode.",
        zero_is_default=True,
        default="the cores this process may use",
    ),
    Field("llama_ngl", NGL, "Layers to put on the GPU; `auto` (or -1): all of them where there is a GPU."),
    Field(
        "llama_main_gpu",
        GPU,
        "The one GPU for all its layers, counted from 0; `auto`: chosen by what is free (docs/devices.md).",
    ),
    Field(
        "llama_tensor_split",
        SPLIT,
        "Shares of the layers for each GPU, such as `3,1`; `auto`: chosen by what is free.",
    ),
    Field("llama_flash_attn", FLASH, "Flash attention; `auto` is what was measured to be best."),
    Field(
        "llama_kv_type",
        KV,
        "Type of the KV cache. The quantised ones need flash attention, and turn it on.",
    ),
    Field("llama_ubatch", UBATCH, "Most tokens of one physical batch."),
    Field("llama_mmap", BOOL, "Map model files into memory instead of reading them."),
    Field(
        "llama_kv_unified",
        or_none(BOOL, ("auto",)),
        "One KV cache for all slots, or (`false`) an equal share of the cells for each: faster from a few "
        "streams on, but no request can have more. `auto` begins with shares, and gives them up for "
        "the first request that needs more.",
    ),
    Field(
        "llama_context_shift",
        BOOL,
        "Let a generation go on at the end of its context: half of what follows the prompt is forgotten, as "
        "often as needed. Slots then have a cache each, or one in which nothing is retained.",
    ),
    Field(
        "llama_prefix_cells",
        PREFIX,
        "KV cells that ended requests leave to prompts which begin alike; 0 switches that off, "
        "`auto` follows from the model, and is less while slots are busy.",
    ),
    Field(
        "isolation",
        Kind("process|thread", parse_isolation),
        "Where an engine runs: in a process of its own, which may crash or hang without harm to others, "
        "or in a thread of the daemon.",
    ),
)
MODEL_FIELDS: tuple[Field, ...] = (
    Field("aliases", LIST, "Further names of the model."),
    Field("pinned", BOOL, "Never evict it to make room."),
    Field("ttl", TTL, "Unload after so long without a request; `forever` (or -1): never by time."),
    Field("preload", BOOL, "Load it when the daemon starts."),
    *LLAMA_FIELDS,
    Field(
        "lora",
        LORA,
        "LoRA adapters, applied together: a list of `{path: adapter.gguf, scale: 0.8}`. A relative path is "
        "one in `models_dir`; `scale` is 1 where it is not given.",
    ),
    Field("max_queue_depth", DEPTH, "Requests that may wait for it.", zero_is_default=True),
    Field("fake", TEXT, "Script of the fake engine for it."),
)
"""What one entry of `models:` may set. Unset ones follow the setting of the same name."""
_CHOSEN = {"llama_ctx", "llama_slots"}
_MODEL_FIELD = {field.name: field for field in MODEL_FIELDS}


def parse_models(value: object) -> Mapping[str, ModelSettings]:
    """Return the options of single models, from a mapping or (in a flag or variable) its JSON text."""
    if isinstance(value, str):
        try:
            value = cast("object", json.loads(value))
        except (ValueError, RecursionError):
            raise BadValue("it must be a JSON object of model names to options") from None
    if not isinstance(value, Mapping):
        raise BadValue(f"{told(value)} is no mapping of model names to options")
    problems: list[tuple[str, str]] = []
    models: dict[str, ModelSettings] = {}
    for name, options in cast("Mapping[object, object]", value).items():
        key = str(name)
        if not isinstance(name, str) or not name.strip():
            problems.append((key, "a model's name must be text; put it in quotes"))
        elif options is not None and not isinstance(options, Mapping):
            problems.append((key, f"{told(options)} is no mapping of options"))
        else:
            chosen = _model_options(key, cast("Mapping[object, object]", options or {}), problems)
            models[key] = msgspec.structs.replace(ModelSettings(), **chosen)
    if problems:
        raise BadValue("", problems)
    return models


def _model_options(
    name: str, options: Mapping[object, object], problems: list[tuple[str, str]]
) -> dict[str, object]:
    chosen: dict[str, object] = {}
    for key, raw in options.items():
        field = _MODEL_FIELD.get(str(key))
        if field is None:
            hint = did_you_mean(str(key), _MODEL_FIELD)
            problems.append((f"{name}.{str(key)[:60]}", f"unknown key{hint}"))
            continue
        try:
            if not is_unset(field, raw):
                chosen[field.name] = field.kind.parse(raw)
        except BadValue as error:
            problems += [(f"{name}.{field.name}", sentence) for _, sentence in error.problems]
    return chosen


def show_models(value: object) -> str:
    """Write the options of single models as JSON, as far as they are not the default."""
    models = cast("Mapping[str, ModelSettings]", value)
    plain = {
        name: {
            key: _plain(key, option)
            for key, option in cast("Mapping[str, object]", msgspec.structs.asdict(options)).items()
            if option != getattr(ModelSettings(), key)
        }
        for name, options in models.items()
    }
    return json.dumps(plain) if plain else ""


def _plain(key: str, option: object) -> object:
    """An option as JSON has it, and as the same table reads it again."""
    if key == "lora":
        return lora_as_json(option)
    return _MODEL_FIELD[key].kind.show(option) if key in _CHOSEN and option == AUTO else option
