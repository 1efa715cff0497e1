# SPDX-License-Identifier: GPL-3.0-only
"""Write lines of events to a bounded, rotated file, or to a pipe.

Synchronous, for the thread of `modeld.telemetry.event_writer`: a write may take as long as the disk does.
Lines are written whole. What a full disk left of one is taken back, and pipes get at most what they take
in one piece.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

PIPE_BYTES = 4096
"""A pipe that polls as writable takes this much at once and in one piece (PIPE_BUF of Linux)."""
FILE_BYTES = 64 * 1024
"""Written to a file at once."""
_OPEN = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_MODE = 0o640


class CannotWrite(Exception):
    """Events cannot be written now; the message says why, as a sentence."""


class EventTarget(Protocol):
    """Takes whole lines."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    def write(self, lines: bytes, late: Callable[[], bool]) -> int:
        """Write lines, some of them or all, and return how many bytes that were: always whole lines.

        Waits for a reader until `late` says that it is time to give up, and then returns 0.
        Raises: CannotWrite; then nothing was written.
        """
        ...

    def reopen(self) -> None:
        """Open it again. Raises: CannotWrite."""
        ...

    def close(self) -> None:
        """Give back what it holds. Idempotent."""
        ...


class StandardOutput:
    """Standard output, whatever it is."""

    name = "standard output"

    def __init__(self, descriptor: int | None = None) -> None:
        """`descriptor` is its own by default; None, too, where the process has none."""
        self._fd = _standard_output() if descriptor is None else descriptor

    def write(self, lines: bytes, late: Callable[[], bool]) -> int:
        """See `Target`."""
        if self._fd is None:
            raise CannotWrite("standard output is closed; name an events_file")
        try:
            return _write_when_ready(self._fd, lines, late)
        except OSError as error:
            why = "whoever read it is gone" if error.errno == errno.EPIPE else _reason(error)
            raise CannotWrite(f"standard output cannot be written: {why}") from None

    def reopen(self) -> None:
        """Nothing to do: it is not ours."""

    def close(self) -> None:
        """Nothing to do: it is not ours."""


class EventFile:
    """A file, or a named pipe, at a path.

    A file that would grow over `max_bytes` becomes `.1`, what was `.1` becomes `.2`, and so on up to `keep`;
    the oldest goes. 0 bytes: never, somebody else rotates it and has it opened again.
    """

    def __init__(self, path: Path, *, max_bytes: int = 0, keep: int = 1) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = max(1, keep)
        self._fd: int | None = None
        self._plain = False

    @property
    def name(self) -> str:
        """The path."""
        return str(self._path)

    def write(self, lines: bytes, late: Callable[[], bool]) -> int:
        """See `Target`."""
        try:
            fd = self._opened()
            if not self._plain:
                return _write_when_ready(fd, lines, late)
            size = os.fstat(fd).st_size
            if self._max_bytes:
                fitting = _whole_lines(lines, self._max_bytes - size)
                if not fitting and size:
                    self._rotate()
                    fd, size = self._opened(), 0
                    fitting = _whole_lines(lines, self._max_bytes)
                lines = fitting or lines[: lines.index(b"\n") + 1]
            _append(fd, lines, size)
        except OSError as error:
            self.close()
            raise CannotWrite(f"{self._path} cannot be written: {self._why(error)}") from None
        return len(lines)

    def reopen(self) -> None:
        """See `Target`."""
        self.close()
        try:
            self._opened()
        except OSError as error:
            raise CannotWrite(f"{self._path} cannot be opened: {self._why(error)}") from None

    def close(self) -> None:
        """See `Target`."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _opened(self) -> int:
        if self._fd is None:
            # O_NONBLOCK: to open a pipe that nobody reads would wait for a reader. Files ignore it.
            fd = os.open(self._path, _OPEN, _MODE)
            try:
                self._plain = stat.S_ISREG(os.fstat(fd).st_mode)
                if self._plain:
                    _lock(fd)
                    _end_line(fd, self._path)
            except BaseException:  # whatever it is: the descriptor does not leak
                os.close(fd)
                raise
            self._fd = fd
        return self._fd

    def _rotate(self) -> None:
        """Move the file away, and the oldest of those that were moved before over the edge."""
        real = self._path.resolve()  # A link stays, its target moves.
        self.close()
        try:
            for number in range(self._keep, 0, -1):
                older = real if number == 1 else Path(f"{real}.{number - 1}")
                with suppress(FileNotFoundError):
                    older.replace(f"{real}.{number}")
        except OSError as error:
            raise CannotWrite(
                f"{self._path} has events_max_bytes and cannot be rotated: {_reason(error)}; let this user "
                "write into its folder, or set events_max_bytes: 0 and rotate it by other means"
            ) from None

    def _why(self, error: OSError) -> str:
        hints = {
            errno.ENXIO: "it is a pipe, and nobody reads it",
            errno.EPIPE: "it is a pipe, and its reader is gone",
            errno.EWOULDBLOCK: "another process writes events into it; name another events_file",
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the quota is used up",
        }
        return hints.get(error.errno or 0) or _reason(error)


def _standard_output() -> int | None:
    try:
        return sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _lock(fd: int) -> None:
    """Be the only one who writes and rotates the file. Where the file system has no locks, trust."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass


def _end_line(fd: int, path: Path) -> None:
    """End the line that a crash of the machine may have torn, so that it spoils no other."""
    size = os.fstat(fd).st_size
    if not size:
        return
    with suppress(PermissionError), path.open("rb") as file:  # It may be ours to write and not to read.
        file.seek(size - 1)
        if file.read(1) != b"\n":
            os.write(fd, b"\n")


def _whole_lines(lines: bytes, most: int) -> bytes:
    """Return the first lines that together have at most so many bytes."""
    if len(lines) <= most:
        return lines
    return lines[: lines.rfind(b"\n", 0, max(0, most)) + 1]


def _append(fd: int, lines: bytes, size: int) -> None:
    """Append all of it, or nothing. `size` is that of the file."""
    done = 0
    try:
        while done < len(lines):
            done += os.write(fd, lines[done:])
    except OSError:
        if done:
            os.ftruncate(fd, size)
        raise


def _write_when_ready(fd: int, lines: bytes, late: Callable[[], bool]) -> int:
    """Write as many whole lines as go in one piece, once somebody takes them."""
    piece = _whole_lines(lines, PIPE_BYTES) or lines
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while True:
        if poll.poll(0 if late() else 100):
            try:
                return os.write(fd, piece)
            except BlockingIOError:
                pass
        if late():
            return 0
