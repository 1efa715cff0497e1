# SPDX-License-Identifier: GPL-3.0-only
"""A bounded, buffered cursor over an untrusted file.

Every method raises GgufError where the file ends too soon; `what` names, for the error, what was read.
It reads, and does not map: a mapped file that another program truncates kills the process that
looks at it (SIGBUS).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import NoReturn

MAX_HEADER_BYTES = 256 * 1024 * 1024
"""Largest metadata and tensor table that is walked; real ones have up to 30 MB."""
CURE = "let its download end, or download it again"

_CHUNK = 1024 * 1024
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class GgufError(ValueError):
    """The file is no GGUF file that can be served. The message is a sentence, with the numbers."""


class Cursor:
    """A place in an open file.

    Attributes:
      name: of the file, for errors.
      size: of the file, bytes, when it was opened.
    """

    def __init__(self, fd: int, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._fd = fd
        self._base = 0  # of the buffer in the file
        self._buffer = b""
        self._at = 0  # in the buffer; may lie behind its end after a skip

    @property
    def position(self) -> int:
        """Bytes from the beginning of the file."""
        return self._base + self._at

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self.size - self._base - self._at

    def count(self, what: str, most: int, *, smallest: int) -> int:
        """Read a count of things of at least `smallest` bytes each."""
        count = self.u64()
        if count > most or count * smallest > self.left:
            self.fail(f"is damaged or cut short: it says it has {count} {what} in {self.left} bytes")
        return count

    def short_string(self, what: str, most: int) -> bytes:
        """Read a string of at most `most` bytes."""
        length = self.u64()
        if length > most:
            self.fail(f"is damaged: {what} is {length} bytes long, {most} at most")
        return self.take(length, what)

    def u32(self) -> int:
        """Read a number of 32 bits."""
        value: int = _U32.unpack(self.take(4))[0]
        return value

    def u64(self) -> int:
        """Read a number of 64 bits."""
        value: int = _U64.unpack(self.take(8))[0]
        return value

    def take(self, count: int, what: str = "the header") -> bytes:
        """Return the next `count` bytes; callers have bounded `count`."""
        if self._at + count > len(self._buffer):
            self._refill(count, what)
        begin = self._at
        self._at += count
        return self._buffer[begin : self._at]

    def skip(self, count: int, what: str) -> None:
        """Go on by so many bytes, without reading them."""
        self._at += count
        if self.left < 0:
            self._cut(what)

    def skip_strings(self, count: int, what: str) -> None:
        """Walk over `count` strings. The inner loop is what a large vocabulary costs."""
        unpack: Callable[[bytes, int], tuple[int]] = _U64.unpack_from
        if count * 8 > self.left:
            self._cut(what)
        while count:
            self._refill(8, what)
            buffer, at = self._buffer, self._at
            last = len(buffer) - 8
            while count and at <= last:
                at += 8 + unpack(buffer, at)[0]
                count -= 1
            self._at = at
        if self.left < 0:
            self._cut(what)

    def strings(self, count: int, what: str, longest: int) -> Iterator[bytes]:
        """Yield `count` strings. One that is not in the buffer as a whole has at most `longest` bytes."""
        unpack: Callable[[bytes, int], tuple[int]] = _U64.unpack_from
        if count * 8 > self.left:
            self._cut(what)
        while count:
            self._refill(8, what)
            buffer, at = self._buffer, self._at
            end = len(buffer)
            while count and at + 8 <= end:
                stop = at + 8 + unpack(buffer, at)[0]
                if stop > end:
                    break
                yield buffer[at + 8 : stop]
                at = stop
                count -= 1
            self._at = at
            if count and at + 8 <= end:
                self._refill(8 + self._next_length(what, longest), what)

    def _next_length(self, what: str, longest: int) -> int:
        length: int = _U64.unpack_from(self._buffer, self._at)[0]
        if length > longest:
            self.fail(f"is damaged: {what} has a string of {length} bytes, {longest} at most")
        return length

    def fail(self, what: str) -> NoReturn:
        """Raise the GgufError that says this of the file."""
        raise GgufError(f"{self.name} {what}")

    def _refill(self, count: int, what: str) -> None:
        """Read on from the cursor, so that at least `count` bytes lie in the buffer."""
        if self.left < count:
            self._cut(what)
        self._base += self._at
        self._at = 0
        if self._base + count > MAX_HEADER_BYTES:
            self.fail(f"has a header of more than {MAX_HEADER_BYTES} bytes")
        self._buffer = os.pread(self._fd, max(count, _CHUNK), self._base)
        if len(self._buffer) < count:
            self.fail(f"became shorter than {self.size} bytes while it was read")

    def _cut(self, what: str) -> NoReturn:
        self.fail(f"is cut short: {what} goes beyond its end at byte {self.size}; {CURE}")


def show(text: str) -> str:
    """Quote a text that came from the file: short, and with nothing that a terminal would obey."""
    return ascii(text if len(text) <= 64 else text[:61] + "...")
