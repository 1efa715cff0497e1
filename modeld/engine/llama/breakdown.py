# SPDX-License-Identifier: GPL-3.0-only
"""llama.cpp's own account of the buffers of a context: how many bytes on which device, and for what.

The account is a C++ function that the library exports and the C API leaves out; it returns a
`std::map`, whose tree is walked here. That is for a process that may fail in any way (`dry_run`), with
the very library that the bindings are pinned to, and what it says is held against llama.cpp's log. A
library without it (another compiler, another version) is no error: then the log alone is read, in
hundredths of a MiB, and what the weights take per buffer is not known.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Iterator

import msgspec

from modeld.core.models import MIB
from modeld.engine.llama.ggml import base
from modeld.engine.llama.library import loaded

_SYMBOL = "_Z26llama_get_memory_breakdownPK13llama_context"
_TOLERANCE = 64 * 1024
"""Bytes by which the account may differ from the log: that is rounded to hundredths of a MiB a line."""
_MOST_BUFFERS = 256

_KV = re.compile(r"^llama_(?:kv_cache|memory_recurrent)\w*: size =\s*([\d.]+) MiB")
_KV_PLACE = re.compile(r"\s(\S+)\s+(?:KV|RS) buffer size =")
_COMPUTE = re.compile(r"\s(\S+)\s+compute buffer size =\s*([\d.]+) MiB")
_OUTPUT = re.compile(r"\s(\S+)\s+output buffer size =\s*([\d.]+) MiB")


class Buffer(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes in one kind of buffer (`CPU`, `CPU_REPACK`, `CUDA0`), by cause."""

    kind: str
    device: str
    weights: int = 0
    kv: int = 0
    compute: int = 0


class _Map(ctypes.Structure):
    """`std::map` of libstdc++: the comparison, the head of the tree, the number of its nodes."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("compare", "color", "root", "left", "right", "count")]
    root: int
    count: int


class _Node(ctypes.Structure):
    """A node of the tree: its links, then the key (a buffer type) and the three sizes."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("color", "parent", "left", "right", "type")),
        *((name, ctypes.c_size_t) for name in ("weights", "kv", "compute")),
    ]
    left: int
    right: int
    type: int
    weights: int
    kv: int
    compute: int


def buffers_of(context: int, log: Iterable[str]) -> tuple[Buffer, ...] | None:
    """Return the buffers of a context; None where the library does not tell, or its log says otherwise.

    `log`: the lines llama.cpp wrote when it made the context.
    """
    function = getattr(loaded, _SYMBOL, None)
    if function is None:
        return None
    function.restype, function.argtypes = _Map, [ctypes.c_void_p]
    tree = function(context)
    if tree.count > _MOST_BUFFERS:
        return None
    found = tuple(_buffer(node) for node in _walk(tree.root))
    said = said_by(log)
    kv, compute = sum(it.kv for it in found), sum(it.compute for it in found)
    if max(abs(kv - said.kv), abs(compute - said.compute)) > _TOLERANCE:
        return None
    return found


def _walk(address: int) -> Iterator[_Node]:
    if address:
        node = _Node.from_address(address)
        yield from _walk(node.left)
        yield node
        yield from _walk(node.right)


def _buffer(node: _Node) -> Buffer:
    ggml = base()
    device = ggml.ggml_backend_buft_get_device(node.type)
    return Buffer(
        kind=ggml.ggml_backend_buft_name(node.type).decode(errors="replace"),
        device=ggml.ggml_backend_dev_name(device).decode(errors="replace") if device else "CPU",
        weights=node.weights,
        kv=node.kv,
        compute=node.compute,
    )


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What the log says of a context, bytes; `places`: where its buffers are."""

    kv: int = 0
    compute: int = 0
    output: int = 0
    places: tuple[str, ...] = ()


def said_by(log: Iterable[str]) -> Said:
    """Read the sizes out of llama.cpp's lines for one context. Those of several buffers are added."""
    kv = compute = output = 0.0
    places: dict[str, None] = {}
    for line in log:
        if found := _KV.search(line):
            kv += float(found[1])
        elif found := _KV_PLACE.search(line):
            places[found[1]] = None
        elif found := _COMPUTE.search(line):
            compute += float(found[2])
            places[found[1]] = None
        elif found := _OUTPUT.search(line):
            output += float(found[2])
    return Said(kv=int(kv * MIB), compute=int(compute * MIB), output=int(output * MIB), places=tuple(places))
