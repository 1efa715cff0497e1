# SPDX-License-Identifier: GPL-3.0-only
"""Reads the header of one GGUF file: its metadata and the table of its tensors, never the weights.

The file is not trusted. Counts and lengths in it are compared with the bytes that are left before
anything is done with them, nothing is allocated from them, and the bounds below end every walk.
Reads go through a buffer and not through mmap: a mapped file that another program truncates kills
the process that looks at it (SIGBUS).

The `gguf` package reads the same header, but turns every token of the vocabulary into several
numpy objects. Measured here (2 cores of an AMD EPYC, files in the page cache, gguf 0.19.0):

| file                                     | gguf.GGUFReader | here            |
|------------------------------------------|-----------------|-----------------|
| SmolLM2-135M, 49,152 tokens              | 3.3 s, 163 MB   | 0.04 s, 3 MB    |
| synthetic, 262,144 tokens, 524,288 merges | 40 s, 1,412 MB  | 0.2 s, 2 MB     |

Layout: docs/gguf.md of ggml. What is refused here, llama.cpp refuses too (ggml/src/gguf.cpp).
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from modeld.engine.llama.gguf_tables import ARRAY, STRING, TENSOR_TYPES, UINT32, VALUE_FORMATS

MAX_HEADER_BYTES = 256 * 1024 * 1024
"""Largest metadata and tensor table that is walked; real ones have up to 30 MB."""
MAX_KEYS = 16_384
MAX_KEY_BYTES = 1024
MAX_TENSORS = 131_072
MAX_TENSOR_NAME_BYTES = 63
"""GGML_MAX_NAME less the closing zero."""
MAX_DIMENSIONS = 4
MAX_STRINGS = 8_000_000
"""Strings in all arrays together: half a second. Vocabulary and merges come to a million."""
KEPT_STRING_BYTES = 256
KEPT_NUMBERS = 65_536
"""Numbers kept of all arrays together; a longer array is known by its length only."""

_CHUNK = 1024 * 1024
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_CURE = "let its download end, or download it again"
_ELEMENTS_LIMIT = 2**63
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

Value = bool | int | float | str | tuple[int, ...]


class GgufError(ValueError):
    """The file is no GGUF file that can be served. The message is a sentence, with the numbers."""


class Tensor(msgspec.Struct, frozen=True):
    """One entry of the tensor table. `rows` is its second dimension (1 for a vector)."""

    name: str
    type: str
    dimensions: int
    rows: int
    elements: int
    bytes: int


class Header(msgspec.Struct, frozen=True):
    """What the header says.

    `metadata` holds all scalars, strings (cut at `KEPT_STRING_BYTES`) and short arrays of whole
    numbers; `lengths` the number of elements of every array and the bytes of every string.
    """

    version: int
    size: int
    metadata: Mapping[str, Value]
    lengths: Mapping[str, int]
    tensors: tuple[Tensor, ...]


def read_header(path: Path) -> Header:
    """Read the header of `path`.

    Raises: GgufError when the file is damaged, cut short or of another kind; OSError when it
      cannot be read. Bounded in time and memory whatever the file holds; blocks on the disk.
    """
    # O_NONBLOCK: a named pipe must not hold the scan up.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise GgufError(f"{path.name} is not a regular file")
        return _Reader(fd, path.name, info.st_size).read()
    finally:
        os.close(fd)


class _Reader:
    """A buffered cursor over one open file, and the walk over its header."""

    def __init__(self, fd: int, name: str, size: int) -> None:
        self._fd = fd
        self._name = name
        self._size = size
        self._base = 0  # of the buffer in the file
        self._buffer = b""
        self._at = 0  # in the buffer; may lie behind its end after a skip
        self._strings_left = MAX_STRINGS
        self._numbers_left = KEPT_NUMBERS

    def read(self) -> Header:
        version = self._preamble()
        tensor_count = self._count("tensors", MAX_TENSORS, smallest=8 + 4 + 4 + 8)
        key_count = self._count("metadata keys", MAX_KEYS, smallest=8 + 4 + 1)
        metadata: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        alignment = self._metadata(key_count, metadata, lengths)
        tensors = self._tensors(tensor_count, alignment)
        return Header(version=version, size=self._size, metadata=metadata, lengths=lengths, tensors=tensors)

    def _preamble(self) -> int:
        if self._size == 0:
            self._fail("is empty")
        magic = self._take(min(4, self._size))
        if magic == b"vers":
            self._fail("is a Git LFS pointer, not the model itself; run `git lfs pull`")
        if magic != _MAGIC[: len(magic)]:
            self._fail(f"is not a GGUF file: it begins with {magic!r}, not with {_MAGIC!r}")
        version = self._u32()
        if version & 0xFFFF == 0 and version:
            self._fail("is a big-endian GGUF file; convert it to little-endian")
        if version not in _VERSIONS:
            self._fail(f"is of GGUF version {version}; versions 2 and 3 can be read: convert the model again")
        return version

    def _metadata(self, count: int, metadata: dict[str, Value], lengths: dict[str, int]) -> int:
        """Read all pairs into the two mappings. Returns the alignment of tensor data, bytes."""
        seen: set[bytes] = set()
        alignment = _DEFAULT_ALIGNMENT
        for index in range(count):
            raw = self._short_string(f"metadata key {index}", MAX_KEY_BYTES)
            key = raw.decode(errors="replace")
            if not raw or raw in seen:
                self._fail(f"is damaged: its metadata key {index}, {_show(key)}, is empty or a duplicate")
            seen.add(raw)
            kind = self._u32()
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
        value = self._u32() if kind == UINT32 else 0
        if value == 0 or value & (value - 1):
            self._fail(f"is damaged: general.alignment is {value} (of type {kind}), not a power of two")
        return value

    def _string(self, key: str) -> tuple[str, int]:
        """Read a string, but keep no more than its beginning. Returns it, and its length in bytes."""
        length = self._u64()
        kept = self._take(min(length, KEPT_STRING_BYTES, self._left()))
        self._skip(length - len(kept), f"the text of {_show(key)}")
        return kept.decode(errors="replace"), length

    def _array(self, key: str, metadata: dict[str, Value], lengths: dict[str, int]) -> None:
        kind = self._u32()
        count = self._u64()
        what = f"the array {_show(key)} of {count} elements"
        lengths[key] = count
        if kind == STRING:
            self._strings_left -= count
            if self._strings_left < 0:
                self._fail(f"has more than {MAX_STRINGS} strings in its metadata, {_show(key)} has {count}")
            self._skip_strings(count, what)
        elif kind == ARRAY:
            self._fail(f"has nested arrays in {_show(key)}; llama.cpp does not read them")
        elif VALUE_FORMATS.get(kind, "f") in "fd" or count > self._numbers_left:
            self._skip(count * struct.calcsize(self._format(key, kind)), what)
        else:
            self._numbers_left -= count
            values = self._numbers(key, kind, count)
            metadata[key] = tuple(int(value) for value in values)

    def _numbers(self, key: str, kind: int, count: int) -> tuple[bool | int | float, ...]:
        layout = f"<{count}{self._format(key, kind)}"
        return struct.unpack(layout, self._take(struct.calcsize(layout), f"the value of {_show(key)}"))

    def _format(self, key: str, kind: int) -> str:
        letter = VALUE_FORMATS.get(kind)
        if letter is None:
            self._fail(f"is damaged: metadata key {_show(key)} has the unknown type {kind}")
        return f"{letter}"

    def _tensors(self, count: int, alignment: int) -> tuple[Tensor, ...]:
        """Read the tensor table, and see that all data lies where it must, inside the file."""
        tensors: list[Tensor] = []
        seen: set[str] = set()
        ends: list[tuple[int, Tensor]] = []
        expected = 0
        for index in range(count):
            tensor = self._tensor(index)
            offset = self._u64()
            if tensor.name in seen:
                self._fail(f"is damaged: it has two tensors of the name {_show(tensor.name)}")
            if offset != expected:
                self._fail(
                    f"is damaged: tensor {_show(tensor.name)} lies at {offset}, but {expected} was expected"
                )
            seen.add(tensor.name)
            tensors.append(tensor)
            ends.append((offset + tensor.bytes, tensor))
            expected += _padded(tensor.bytes, alignment)
        start = _padded(self._base + self._at, alignment)
        for end, tensor in ends:
            if start + end > self._size:
                self._fail(
                    f"is cut short: tensor {_show(tensor.name)} ends at byte {start + end}, the file at byte "
                    f"{self._size} of at least {start + ends[-1][0]}; {_CURE}"
                )
        return tuple(tensors)

    def _tensor(self, index: int) -> Tensor:
        raw = self._short_string(f"the name of tensor {index}", MAX_TENSOR_NAME_BYTES)
        name = raw.decode(errors="replace")
        dimensions = self._u32()
        if dimensions > MAX_DIMENSIONS:
            self._fail(
                f"is damaged: tensor {_show(name)} has {dimensions} dimensions, {MAX_DIMENSIONS} at most"
            )
        shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
        elements = 1
        for extent in shape:
            elements *= extent
        kind = self._u32()
        tensor_type = TENSOR_TYPES.get(kind)
        if tensor_type is None:
            self._fail(f"has a tensor {_show(name)} of type {kind}, which this llama.cpp does not know")
        row = shape[0] if shape else 1
        if row % tensor_type.block or max((*shape, elements)) >= _ELEMENTS_LIMIT:
            self._fail(
                f"is damaged: tensor {_show(name)} of type {tensor_type.name} has the shape {list(shape)}"
            )
        return Tensor(
            name=name,
            type=tensor_type.name,
            dimensions=dimensions,
            rows=shape[1] if dimensions > 1 else 1,
            elements=elements,
            bytes=elements // tensor_type.block * tensor_type.size,
        )

    # The cursor.

    def _left(self) -> int:
        return self._size - self._base - self._at

    def _count(self, what: str, most: int, *, smallest: int) -> int:
        """Read a count of things of at least `smallest` bytes each."""
        count = self._u64()
        if count > most or count * smallest > self._left():
            self._fail(f"is damaged or cut short: it says it has {count} {what} in {self._left()} bytes")
        return count

    def _short_string(self, what: str, most: int) -> bytes:
        length = self._u64()
        if length > most:
            self._fail(f"is damaged: {what} is {length} bytes long, {most} at most")
        return self._take(length, what)

    def _u32(self) -> int:
        value: int = _U32.unpack(self._take(4))[0]
        return value

    def _u64(self) -> int:
        value: int = _U64.unpack(self._take(8))[0]
        return value

    def _take(self, count: int, what: str = "the header") -> bytes:
        """Return the next `count` bytes; callers have bounded `count`."""
        if self._at + count > len(self._buffer):
            self._refill(count, what)
        begin = self._at
        self._at += count
        return self._buffer[begin : self._at]

    def _skip(self, count: int, what: str) -> None:
        self._at += count
        if self._left() < 0:
            self._cut(what)

    def _skip_strings(self, count: int, what: str) -> None:
        """Walk over `count` strings. The inner loop is what a large vocabulary costs."""
        unpack: Callable[[bytes, int], tuple[int]] = _U64.unpack_from
        if count * 8 > self._left():
            self._cut(what)
        while count:
            self._refill(8, what)
            buffer, at = self._buffer, self._at
            last = len(buffer) - 8
            while count and at <= last:
                at += 8 + unpack(buffer, at)[0]
                count -= 1
            self._at = at
        if self._left() < 0:
            self._cut(what)

    def _refill(self, count: int, what: str) -> None:
        """Read on from the cursor, so that at least `count` bytes lie in the buffer."""
        if self._left() < count:
            self._cut(what)
        self._base += self._at
        self._at = 0
        if self._base + count > MAX_HEADER_BYTES:
            self._fail(f"has a header of more than {MAX_HEADER_BYTES} bytes")
        self._buffer = os.pread(self._fd, max(count, _CHUNK), self._base)
        if len(self._buffer) < count:
            self._fail(f"became shorter than {self._size} bytes while it was read")

    def _cut(self, what: str) -> NoReturn:
        self._fail(f"is cut short: {what} goes beyond its end at byte {self._size}; {_CURE}")

    def _fail(self, what: str) -> NoReturn:
        raise GgufError(f"{self._name} {what}")


def _padded(value: int, alignment: int) -> int:
    return (value + alignment - 1) // alignment * alignment


def _show(text: str) -> str:
    """Quote a text that came from the file: short, and with nothing that a terminal would obey."""
    return ascii(text if len(text) <= 64 else text[:61] + "...")
