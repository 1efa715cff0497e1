# SPDX-License-Identifier: GPL-3.0-only
"""Write log records on a thread, so that logging never blocks."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from io import UnsupportedOperation
from typing import TextIO

QUEUE_RECORDS = 10_000
_CHUNK_BYTES = 4096
"""A pipe that polls as writable takes this much at once (pipe(7): one page)."""
_GATHER_S = 0.01
"""After it wrote, the thread gathers records for so long. To wake it costs as much as a few records."""
_SLOW = "standard error was not read fast enough"
_LAST_WORDS_S = 1.0
"""How long stopping waits for a reader that does not read."""


class LogWriter:
    """The thread that writes records, and the bounded queue in front of it.

    Attributes:
      dropped: records that were not written, because the queue was full or the reader gone.
    """

    def __init__(
        self, stream: TextIO, render: Callable[[logging.LogRecord], str], capacity: int = QUEUE_RECORDS
    ) -> None:
        self.dropped = 0
        self._told = 0
        self._why = _SLOW
        self._stream = stream
        self._render = render
        self._capacity = capacity
        self._records: deque[logging.LogRecord] = deque()
        self._asleep = False
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._give_up_at: float | None = None
        self._fd = _descriptor(stream)
        self._thread = threading.Thread(target=self._run, name="modeld-log", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, record: logging.LogRecord) -> None:
        """Take a record without waiting; count it when there is no room."""
        if len(self._records) >= self._capacity:
            self.dropped += 1
            return
        self._records.append(record)
        if self._asleep:  # It says so before it looks for records once more, so none is left lying.
            self._asleep = False
            self._woken.set()

    def stop(self) -> None:
        """Write what is left, for at most a second when nobody reads, and end the thread."""
        self._give_up_at = time.monotonic() + _LAST_WORDS_S
        self._stopping.set()
        self._woken.set()
        self._thread.join(_LAST_WORDS_S + 2.0)

    def _run(self) -> None:
        while True:
            stopping = self._stopping.is_set()  # What was put before that is still written.
            while self._records:
                if self._write(self._lines()):
                    self._tell_lost()
            if stopping:
                return
            self._stopping.wait(_GATHER_S)
            if not self._records:
                self._sleep()

    def _sleep(self) -> None:
        self._woken.clear()
        self._asleep = True
        if not self._records and not self._stopping.is_set():
            self._woken.wait()
        self._asleep = False

    def _tell_lost(self) -> None:
        """Say how many lines are missing, now that lines can be written: a full disk has room again."""
        lost = self.dropped - self._told
        if not lost:
            return
        note = logging.LogRecord("modeld.log", logging.WARNING, "", 0, "log lines lost", (), None)
        note.fields = {"lines": lost, "why": self._why}
        if self._write([self._line(note)]):
            self._told += lost
            self._why = _SLOW
        else:
            self.dropped -= 1  # The note is none of those lines.

    def _lines(self) -> list[str]:
        """Take records for one write: each lets go of the interpreter, and has to get it back."""
        lines, size = list[str](), 0
        while self._records and size < _CHUNK_BYTES // 2:
            lines.append(self._line(self._records.popleft()))
            size += len(lines[-1])
        return lines

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self._render(record) + "\n"
        except Exception as error:  # noqa: BLE001  # a field's own __str__ may raise anything
            return f"a log line could not be written: {type(error).__name__}\n"

    def _write(self, lines: list[str]) -> bool:
        """Write lines; return whether that succeeded. If not, they count as dropped."""
        text = "".join(lines)
        try:
            if self._fd is None:
                self._stream.write(text)
                self._stream.flush()
            else:
                self._write_chunks(self._fd, text.encode("utf-8", "backslashreplace"))
        except (OSError, ValueError) as error:
            self.dropped += len(lines)
            reason = error.strerror if isinstance(error, OSError) else None
            self._why = f"they could not be written: {reason or error}"
            return False
        return True

    def _write_chunks(self, fd: int, data: bytes) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        while data:
            while not poll.poll(0 if self._late() else 100):
                if self._late():
                    raise BlockingIOError
            data = data[os.write(fd, data[:_CHUNK_BYTES]) :]

    def _late(self) -> bool:
        return self._give_up_at is not None and time.monotonic() > self._give_up_at


def _descriptor(stream: TextIO) -> int | None:
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError, UnsupportedOperation):
        return None
