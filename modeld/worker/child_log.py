# SPDX-License-Identifier: GPL-3.0-only
"""Forward a worker process's standard error to the log, and keep its last lines for error reports.

The child marks the lines of its own logging with their level; a line without a mark was written by
C: an assertion, or a crash. A flood costs nothing but the reading: beyond `LINES_PER_S` lines are
counted, not looked at.
"""

from __future__ import annotations

import logging
import re
from collections import deque

from modeld.telemetry.log import get_logger
from modeld.worker.messages import split_mark

LINES_PER_S = 100.0
BURST_LINES = 1000.0
LINE_BYTES = 4096
"""A longer line is cut."""
WORDS_AGE_S = 30.0
"""What was said longer before a death has nothing to do with it."""
WORDS = 3
"""Lines that a report of a death repeats."""
_WORD_CHARACTERS = 300
_KEPT_LINES = 32
_TELL_DROPPED_S = 1.0

_log = get_logger("modeld.worker")
_TRACEBACK = re.compile(r"\s*$|Fatal Python error|Thread 0x|Current thread 0x|  File |  <|Extension modules:")
"""What faulthandler adds to a crash: good to have in the log, no use to a client."""


class ChildLog:
    """The lines of one worker process.

    Attributes:
      dropped: lines that were not logged, because there were too many.
    """

    def __init__(self, model_id: str, pid: int) -> None:
        self.dropped = 0
        self._told = 0
        self._told_at = 0.0
        self._model_id = model_id
        self._pid = pid
        self._allowance = BURST_LINES
        self._at = 0.0
        self._rest = b""
        self._words: deque[tuple[float, str]] = deque(maxlen=_KEPT_LINES)

    def feed(self, data: bytes, now: float) -> None:
        """Take in what was read; `now` in seconds of any steady clock."""
        self._allowance = min(BURST_LINES, self._allowance + (now - self._at) * LINES_PER_S)
        self._at = now
        *lines, rest = (self._rest + data).split(b"\n", int(self._allowance))
        self._allowance -= len(lines)
        for line in lines:
            self._line(line, now)
        if b"\n" in rest:  # The allowance is used up: count, and keep the end for the report.
            self.dropped += rest.count(b"\n")
            *last, rest = rest[-WORDS * LINE_BYTES :].split(b"\n")
            for line in last[-WORDS:]:
                self._remember(line, now)
        self._rest = rest[:LINE_BYTES]
        if self.dropped > self._told and now - self._told_at >= _TELL_DROPPED_S:
            self._tell_dropped(now)

    def end(self, now: float) -> None:
        """Take in that nothing more comes."""
        if self._rest:
            self._line(self._rest, now)
            self._rest = b""
        if self.dropped > self._told:
            self._tell_dropped(now)

    def last_words(self, now: float) -> str:
        """Return the last warnings, and the last lines that C wrote, as one part of a sentence."""
        recent = [text for at, text in self._words if now - at <= WORDS_AGE_S]
        return "; ".join(recent[-WORDS:])

    def _line(self, line: bytes, now: float) -> None:
        level, text = self._remember(line, now)
        if text:
            _log.log(level, text, model=self._model_id, pid=self._pid)

    def _remember(self, line: bytes, now: float) -> tuple[int, str]:
        marked, rest = split_mark(line)
        level = logging.WARNING if marked is None else marked
        text = rest[:LINE_BYTES].decode("utf-8", "replace").rstrip()
        if level >= logging.WARNING and not _TRACEBACK.match(text):
            self._words.append((now, text[:_WORD_CHARACTERS]))
        return level, text

    def _tell_dropped(self, now: float) -> None:
        lines, self._told, self._told_at = self.dropped - self._told, self.dropped, now
        _log.warning("log lines of a model dropped", model=self._model_id, pid=self._pid, lines=lines)
