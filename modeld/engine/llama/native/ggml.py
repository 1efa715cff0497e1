# SPDX-License-Identifier: GPL-3.0-only
"""Bindings to ggml's device and buffer interface, which llama-cpp-python leaves out.

Source: ggml-backend.h of the llama.cpp that the bindings are pinned to.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from modeld.engine.llama.native.library import loaded

_TEXT, _POINTER, _NONE = ctypes.c_char_p, ctypes.c_void_p, None
_BASE: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_buft_name": (_TEXT, [_POINTER]),
    "ggml_backend_buft_get_device": (_POINTER, [_POINTER]),
    "ggml_backend_dev_name": (_TEXT, [_POINTER]),
    "ggml_backend_dev_get_props": (_NONE, [_POINTER, _POINTER]),
}
_REGISTRY: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_dev_count": (ctypes.c_size_t, []),
    "ggml_backend_dev_get": (_POINTER, [ctypes.c_size_t]),
}


class Props(ctypes.Structure):
    """`ggml_backend_dev_props`: all that a device says of itself, memory in bytes."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("free", ctypes.c_size_t),
        ("total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("id", ctypes.c_char_p),
        ("caps", ctypes.c_bool * 8),  # Four of them; a newer library may have some more.
    ]
    name: bytes | None
    description: bytes | None
    free: int
    total: int
    type: int
    id: bytes | None


@cache
def base() -> Any:
    """Return the library that knows buffers and devices."""
    return _library("libggml-base", _BASE)


@cache
def registry() -> Any:
    """Return the library that knows which devices there are."""
    return _library("libggml", _REGISTRY)


def _library(stem: str, functions: dict[str, tuple[Any, list[Any]]]) -> Any:
    found: str = loaded.__dict__["_name"]
    name = Path(found)
    library = ctypes.CDLL(str(name.with_name(f"{stem}{name.suffix}")))
    for symbol, (result, arguments) in functions.items():
        function = getattr(library, symbol)
        function.restype, function.argtypes = result, arguments
    return library
