# SPDX-License-Identifier: GPL-3.0-only
"""Parse the header of a GGUF file: metadata and tensor table, never the weights.

The file is not trusted. Counts and lengths in it are compared with the bytes that are left before
anything is done with them, nothing is allocated from them, and the bounds below end every walk.

The `gguf` package reads the same header, but turns every token of the vocabulary into several
numpy objects. Measured here (2 cores of an AMD EPYC, files in the page cache, gguf 0.19.0):

| file                                      | gguf.GGUFReader | here         |
|-------------------------------------------|-----------------|--------------|
| SmolLM2-135M, 49,152 tokens               | 3.3 s, 163 MB   | 0.04 s, 3 MB |
| synthetic, 262,144 tokens, 524,288 merges | 40 s, 1,412 MB  | 0.2 s, 2 MB  |

Layout: docs/gguf.md of ggml. But for the bounds, what is refused here llama.cpp refuses too
(ggml/src/gguf.cpp, llama-model-loader.cpp).
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from modeld.engine.llama.gguf.cursor import CURE, Cursor, GgufError, show
from modeld.engine.llama.gguf.tables import ARRAY, STRING, TENSOR_TYPES, UINT32, VALUE_FORMATS

# ----------------------------------------------------------------------
# Reads the table of tensors in a GGUF header: names, types and shapes, and that their data is all there.

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


# ----------------------------------------------------------------------

MAX_KEYS = 16_384
MAX_KEY_BYTES = 1024
MAX_TENSORS = 131_072
MAX_STRINGS = 8_000_000
"""Strings in all arrays together: half a second. Vocabulary and merges come to a million."""
MAX_TOKENS = 2**20
"""Tokens of a vocabulary: four times those of the largest one, and some 70 MB while they are compared."""
MAX_TOKEN_BYTES = 65_535
KEPT_STRING_BYTES = 256
KEPT_NUMBERS = 65_536
"""Numbers kept of all arrays together; a longer array is known by its length only."""

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_TOKENS = "tokenizer.ggml.tokens"
_BYTE_TOKEN_LENGTHS = frozenset({1, 6})
_SHOWN_BYTES = 64

Value = bool | int | float | str | tuple[int, ...]


class Header(msgspec.Struct, frozen=True):
    """What the header says.

    `metadata` holds all scalars, strings (cut at `KEPT_STRING_BYTES`) and short arrays of whole
    numbers; `lengths` the number of elements of every array and the bytes of every string;
    `byte_tokens` the bytes that have a token of their own, as SentencePiece vocabularies spell them;
    `twin_token` the text of a token that another one has, too; `types` the GGUF type of every value.
    """

    version: int
    size: int
    metadata: Mapping[str, Value]
    lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    byte_tokens: frozenset[int] = frozenset()
    twin_token: bytes | None = None
    types: Mapping[str, int] = {}


def read_header(path: Path, *, keeps: Mapping[str, int] = MappingProxyType({})) -> Header:
    """Read the header of `path`. Of the strings under the keys in `keeps` so many bytes are kept.

    Raises: GgufError when the file is damaged, cut short or of another kind; OSError when it
      cannot be read. Bounded in time and memory whatever the file holds; blocks on the disk.
    """
    # O_NONBLOCK: a named pipe must not hold the scan up.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise GgufError(f"{path.name} is not a regular file")
        return _Reader(fd, path.name, info.st_size, keeps).read()
    finally:
        os.close(fd)


class _Reader(Cursor):
    """The walk over one header."""

    def __init__(self, fd: int, name: str, size: int, keeps: Mapping[str, int]) -> None:
        super().__init__(fd, name, size)
        self._keeps = keeps
        self._strings_left = MAX_STRINGS
        self._numbers_left = KEPT_NUMBERS
        self._byte_tokens: frozenset[int] = frozenset()
        self._twin_token: bytes | None = None
        self._types: dict[str, int] = {}

    def read(self) -> Header:
        version = self._preamble()
        tensor_count = self.count("tensors", MAX_TENSORS, smallest=8 + 4 + 4 + 8)
        key_count = self.count("metadata keys", MAX_KEYS, smallest=8 + 4 + 1)
        metadata: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        alignment = self._metadata(key_count, metadata, lengths)
        tensors = read_tensors(self, tensor_count, alignment)
        return Header(
            version=version,
            size=self.size,
            metadata=metadata,
            lengths=lengths,
            tensors=tensors,
            byte_tokens=self._byte_tokens,
            twin_token=self._twin_token,
            types=self._types,
        )

    def _preamble(self) -> int:
        if self.size == 0:
            self.fail("is empty")
        magic = self.take(min(4, self.size))
        if magic == b"vers":
            self.fail("is a Git LFS pointer, not the model itself; run `git lfs pull`")
        if magic != _MAGIC[: len(magic)]:
            self.fail(f"is not a GGUF file: it begins with {magic!r}, not with {_MAGIC!r}")
        version = self.u32()
        if version & 0xFFFF == 0 and version:
            self.fail("is a big-endian GGUF file; convert it to little-endian")
        if version not in _VERSIONS:
            self.fail(f"is of GGUF version {version}; versions 2 and 3 can be read: convert the model again")
        return version

    def _metadata(self, count: int, metadata: dict[str, Value], lengths: dict[str, int]) -> int:
        """Read all pairs into the two mappings. Returns the alignment of tensor data, bytes."""
        seen: set[bytes] = set()
        alignment = _DEFAULT_ALIGNMENT
        for index in range(count):
            raw = self.short_string(f"metadata key {index}", MAX_KEY_BYTES)
            key = raw.decode(errors="replace")
            if not raw or raw in seen:
                self.fail(f"is damaged: its metadata key {index}, {show(key)}, is empty or a duplicate")
            seen.add(raw)
            kind = self._types[key] = self.u32()
            if key == "general.alignment":
                alignment = self._alignment(kind)
            elif kind == STRING:
                metadata[key], lengths[key] = self._string(key)
            elif kind == ARRAY:
                self._array(key, metadata, lengths)
            else:
                metadata[key] = self._numbers(key, kind, 1)[0]
        return alignment

    def _alignment(self, kind: int) -> int:
        value = self.u32() if kind == UINT32 else 0
        if value == 0 or value & (value - 1):
            self.fail(f"is damaged: general.alignment is {value} (of type {kind}), not a power of two")
        return value

    def _string(self, key: str) -> tuple[str, int]:
        """Read a string, but keep no more than its beginning. Returns it, and its length in bytes."""
        length = self.u64()
        kept = self.take(min(length, self._keeps.get(key, KEPT_STRING_BYTES), self.left))
        self.skip(length - len(kept), f"the text of {show(key)}")
        return kept.decode(errors="replace"), length

    def _array(self, key: str, metadata: dict[str, Value], lengths: dict[str, int]) -> None:
        kind = self.u32()
        count = self.u64()
        what = f"the array {show(key)} of {count} elements"
        lengths[key] = count
        if kind == STRING:
            self._strings_left -= count
            if self._strings_left < 0:
                self.fail(f"has more than {MAX_STRINGS} strings in its metadata, {show(key)} has {count}")
            if key == _TOKENS:
                self._tokens(count, what)
            else:
                self.skip_strings(count, what)
        elif kind == ARRAY:
            self.fail(f"has nested arrays in {show(key)}; llama.cpp does not read them")
        elif VALUE_FORMATS.get(kind, "f") in "fd" or count > self._numbers_left:
            self.skip(count * struct.calcsize(self._format(key, kind)), what)
        else:
            self._numbers_left -= count
            values = self._numbers(key, kind, count)
            metadata[key] = tuple(int(value) for value in values)

    def _tokens(self, count: int, what: str) -> None:
        """Look at each token as llama.cpp does: up to a zero byte, and an empty one gets a name."""
        if count > MAX_TOKENS:
            self.fail(f"is damaged: {what} is a vocabulary of more than {MAX_TOKENS} tokens")
        seen: set[int] = set()
        short: set[bytes] = set()
        for index, raw in enumerate(self.strings(count, what, MAX_TOKEN_BYTES)):
            text = raw if 0 not in raw else raw[: raw.index(0)]
            if len(text) in _BYTE_TOKEN_LENGTHS:
                short.add(text)
            known = len(seen)
            seen.add(hash(text or b"[EMPTY_%d]" % index))
            if len(seen) == known:
                self._twin_token = text[:_SHOWN_BYTES]
        self._byte_tokens = frozenset(byte for byte in range(256) if _spelled(byte) & short)

    def _numbers(self, key: str, kind: int, count: int) -> tuple[bool | int | float, ...]:
        layout = f"<{count}{self._format(key, kind)}"
        return struct.unpack(layout, self.take(struct.calcsize(layout), f"the value of {show(key)}"))

    def _format(self, key: str, kind: int) -> str:
        letter = VALUE_FORMATS.get(kind)
        if letter is None:
            self.fail(f"is damaged: metadata key {show(key)} has the unknown type {kind}")
        return f"{letter}"


def _spelled(byte: int) -> set[bytes]:
    """How a SentencePiece vocabulary may spell the token of a byte."""
    return {b"<0x%02X>" % byte, bytes((byte,))}
