# SPDX-License-Identifier: GPL-3.0-only
"""The LoRA adapters of one loaded model: checks their files, loads them, puts them on a context."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeld.core.catalog import parse_split
from modeld.core.models import Adapter
from modeld.engine.llama.adapter_file import adapter_facts, check_fit
from modeld.engine.llama.gguf import GgufError, Header, read_header
from modeld.engine.llama.library import capture, lib
from modeld.errors import ModelFailed


class Adapters:
    """Loaded adapters. llama.cpp frees them together with their model.

    They have to be there before a context is made: its graph has room for those that its model has then.
    """

    def __init__(self, model_id: str, path: str, model: int, wanted: Sequence[Adapter]) -> None:
        """Load them into the model at the address `model`, whose file (or first part) is `path`.

        Raises: ModelFailed with the reason. What was loaded till then is freed with the model.
        """
        headers = _model_headers(model_id, Path(path)) if wanted else []
        self._scales = [adapter.scale for adapter in wanted]
        self._pointers = [_load(model_id, headers, model, Path(adapter.path)) for adapter in wanted]

    def put_on(self, context: int) -> None:
        """Use them in a context from its next decode on."""
        count = len(self._pointers)
        if count:
            pointers = (lib.llama_adapter_lora_p_ctypes * count)(*self._pointers)
            scales = (ctypes.c_float * count)(*self._scales)
            lib.llama_set_adapters_lora(context, pointers, count, scales)


def _model_headers(model_id: str, first: Path) -> list[Header]:
    """Read the headers of all parts. They were read before, but a file may change at any time."""
    split = parse_split(first.name)
    names = [first.name] if split is None else [split.name_of(part) for part in range(1, split.parts + 1)]
    try:
        return [read_header(first.with_name(name)) for name in names]
    except (GgufError, OSError) as error:
        raise ModelFailed(f"{model_id} cannot be compared with its LoRA adapters: {error}") from error


def _load(model_id: str, headers: Sequence[Header], model: int, path: Path) -> Any:
    """Return llama.cpp's pointer to the adapter (the bindings have it as one to a pointer)."""
    try:
        architecture = str(headers[0].metadata.get("general.architecture", ""))
        check_fit(adapter_facts(read_header(path)), architecture, headers)
    except GgufError as error:
        raise ModelFailed(f"{model_id}: its LoRA adapter {path.name} cannot be used: {error}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelFailed(f"{model_id}: its LoRA adapter {path} cannot be read: {reason}") from error
    with capture() as log:
        pointer = lib.llama_adapter_lora_init(model, os.fsencode(path))
    if not pointer:  # NULL, which is not None
        raise ModelFailed(
            f"{model_id}: llama.cpp refuses its LoRA adapter {path.name}: {log.tell() or 'no reason given'}"
        )
    return pointer
