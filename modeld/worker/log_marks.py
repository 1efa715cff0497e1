# SPDX-License-Identifier: GPL-3.0-only
"""How a worker process marks the level of a line on standard error: `<4>text`, as sd-daemon(3) has it."""

from __future__ import annotations

import logging
import re

_MARK = re.compile(rb"<([3-7])>")
_LEVELS = {3: logging.ERROR, 4: logging.WARNING, 5: logging.INFO, 6: logging.INFO, 7: logging.DEBUG}


def mark(level: int) -> str:
    """Return the mark of a line of this level (a number of `logging`)."""
    if level >= logging.ERROR:
        return "<3>"
    if level >= logging.WARNING:
        return "<4>"
    return "<6>" if level >= logging.INFO else "<7>"


def split_mark(line: bytes) -> tuple[int | None, bytes]:
    """Return the level that a line is marked with and the rest of it; None for a line without a mark."""
    found = _MARK.match(line)
    return (_LEVELS[int(found[1])], line[found.end() :]) if found else (None, line)
