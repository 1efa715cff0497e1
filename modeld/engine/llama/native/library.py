# SPDX-License-Identifier: GPL-3.0-only
"""Load and initialise the llama.cpp library, and forward its log.

Import this module before anything of `llama_cpp`: some settings are read only when the shared
library loads. llama.cpp has one log for the whole process; here each line goes to the logger
`modeld.llama`, to a ring of the last lines, and to the `capture` of the thread that caused it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

# An abort would first start a debugger, and hang where there is one (docs: traps of llama.cpp).
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
# OpenMP threads spin at a barrier before they sleep; a short spin leaves the core to the server.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from llama_cpp import llama_cpp as lib  # reads the environment set above

__all__ = [
    "LogCapture",
    "capture",
    "initialise",
    "last_lines",
    "lib",
    "loaded",
    "logger",
    "system_info",
    "version",
]

loaded: Any = vars(lib)["_lib"]
"""The shared library (ctypes.CDLL), for what the bindings leave out; they have no public name for it."""

logger = logging.getLogger("modeld.llama")

_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.WARNING}
"""Level of ggml (debug, info, warning, error) to ours: llama.cpp is talkative."""
_CONTINUED = 5
_INFO, _ERROR = 2, 4
_HARMLESS = re.compile(
    r"(compute status: 1|failed with error 1|failed to decode, ret = 2)$|removing memory module entries"
    r"|lora for '[^']*' cannot use buft"
)
"""What sounds worse than it is: a decode that we ourselves aborted, and (for each weight) that the halves of
an adapter are not rearranged for the CPU, as the weights are."""
_RING_LINES = 64

last_lines: deque[str] = deque(maxlen=_RING_LINES)
"""The last lines of llama.cpp's log, debug lines left out."""

_captures: dict[int, list[LogCapture]] = {}
_lock = threading.Lock()


class LogCapture:
    """Lines that one thread caused, with their ggml level (1 debug, 2 info, 3 warning, 4 error)."""

    def __init__(self, least_level: int = 0, most: int = _RING_LINES) -> None:
        """`least_level`: less important lines are left out; `most`: so many of the last ones are kept."""
        self.least_level = least_level
        self.lines: deque[tuple[int, str]] = deque(maxlen=most)

    def tell(self, most: int = 3) -> str:
        """Return the last lines that tell of a fault, or else the last lines, as one sentence part."""
        lines = [line for level, line in self.lines if level == _ERROR]
        lines = lines or [line for level, line in self.lines if level > 1]
        return "; ".join(lines[-most:])


@contextmanager
def capture(least_level: int = 0, most: int = _RING_LINES) -> Generator[LogCapture]:
    """Collect what llama.cpp logs from this thread meanwhile; see `LogCapture` for the arguments."""
    lines = LogCapture(least_level, most)
    stack = _captures.setdefault(threading.get_ident(), [])
    stack.append(lines)
    try:
        yield lines
    finally:
        stack.remove(lines)
        if not stack:
            _captures.pop(threading.get_ident(), None)


def _receive(level: int, text: bytes, _user_data: object) -> None:
    """Take one line of llama.cpp's log. Called from C, on any thread; must not raise."""
    line = text.decode("utf-8", errors="replace").strip()
    if level == _CONTINUED or not line.strip("."):
        return
    if level > _INFO and _HARMLESS.search(line):
        level = 1
    if level > 1:
        last_lines.append(line)
    for lines in _captures.get(threading.get_ident(), ()):
        if level >= lines.least_level:
            lines.lines.append((level, line))
    ours = _LEVELS.get(level, logging.DEBUG)
    if logger.isEnabledFor(ours):
        logger.log(ours, "%s", line)


_log_callback = lib.llama_log_callback(_receive)
"""Kept alive here: C holds only its address."""


def initialise() -> None:
    """Initialise the library and take over its log. Idempotent, from any thread."""
    with _lock:
        _initialise_once()


@cache
def _initialise_once() -> None:
    lib.llama_log_set(_log_callback, None)
    lib.llama_backend_init()


def version() -> str:
    """Return llama.cpp's version."""
    return lib.llama_version().decode()


def system_info() -> str:
    """Return what llama.cpp was built for and found: instruction sets, backends."""
    return lib.llama_print_system_info().decode().strip().strip("|").strip()
