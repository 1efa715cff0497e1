# SPDX-License-Identifier: GPL-3.0-only
"""Reads the table of tensors in a GGUF header: names, types and shapes, and that their data is all there."""

from __future__ import annotations

import struct

import msgspec

from modeld.engine.llama.gguf_cursor import CURE, Cursor, show
from modeld.engine.llama.gguf_tables import TENSOR_TYPES

MAX_TENSOR_NAME_BYTES = 63
"""GGML_MAX_NAME less the closing zero."""
MAX_DIMENSIONS = 4
_ELEMENTS_LIMIT = 2**63


class Tensor(msgspec.Struct, frozen=True):
    """One entry of the tensor table. `rows` is its second dimension (1 for a vector).

    `shape` has the dimensions as ggml counts them: the one that lies together in memory comes first.
    """

    name: str
    type: str
    dimensions: int
    rows: int
    elements: int
    bytes: int
    shape: tuple[int, ...] = ()


def read_tensors(cursor: Cursor, count: int, alignment: int) -> tuple[Tensor, ...]:
    """Read the tensor table, and see that all data lies where it must, inside the file.

    `alignment` is that of tensor data, bytes. Raises: GgufError.
    """
    tensors: list[Tensor] = []
    seen: set[str] = set()
    ends: list[tuple[int, Tensor]] = []
    expected = 0
    for index in range(count):
        tensor = _tensor(cursor, index)
        offset = cursor.u64()
        if tensor.name in seen:
            cursor.fail(f"is damaged: it has two tensors of the name {show(tensor.name)}")
        if offset != expected:
            cursor.fail(
                f"is damaged: tensor {show(tensor.name)} lies at {offset}, but {expected} was expected"
            )
        seen.add(tensor.name)
        tensors.append(tensor)
        ends.append((offset + tensor.bytes, tensor))
        expected += _padded(tensor.bytes, alignment)
    start = _padded(cursor.position, alignment)
    for end, tensor in ends:
        if start + end > cursor.size:
            cursor.fail(
                f"is cut short: tensor {show(tensor.name)} ends at byte {start + end}, the file at byte "
                f"{cursor.size} of at least {start + ends[-1][0]}; {CURE}"
            )
    return tuple(tensors)


def _tensor(cursor: Cursor, index: int) -> Tensor:
    raw = cursor.short_string(f"the name of tensor {index}", MAX_TENSOR_NAME_BYTES)
    name = raw.decode(errors="replace")
    dimensions = cursor.u32()
    if dimensions > MAX_DIMENSIONS:
        cursor.fail(f"is damaged: tensor {show(name)} has {dimensions} dimensions, {MAX_DIMENSIONS} at most")
    shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions))
    elements = 1
    for extent in shape:
        elements *= extent
    kind = cursor.u32()
    tensor_type = TENSOR_TYPES.get(kind)
    if tensor_type is None:
        cursor.fail(f"has a tensor {show(name)} of type {kind}, which this llama.cpp does not know")
    row = shape[0] if shape else 1
    if row % tensor_type.block or max((*shape, elements)) >= _ELEMENTS_LIMIT:
        cursor.fail(f"is damaged: tensor {show(name)} of type {tensor_type.name} has the shape {list(shape)}")
    return Tensor(
        name=name,
        type=tensor_type.name,
        dimensions=dimensions,
        rows=shape[1] if dimensions > 1 else 1,
        elements=elements,
        bytes=elements // tensor_type.block * tensor_type.size,
        shape=shape,
    )


def _padded(value: int, alignment: int) -> int:
    return (value + alignment - 1) // alignment * alignment
