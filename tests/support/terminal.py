# SPDX-License-Identifier: GPL-3.0-only
"""`modeld` in a terminal of its own: what it writes there, and what the one who sits there can do."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_PATIENCE_S = 90.0
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Terminal:
    """A running command. `seen` is everything it wrote so far, control sequences included."""

    def __init__(self, process: subprocess.Popen[bytes], main: int) -> None:
        self.process = process
        self._main = main
        self._bytes = b""

    @property
    def seen(self) -> str:
        return self._bytes.decode("utf-8", "replace")

    @property
    def text(self) -> str:
        """What it wrote, without control sequences."""
        return _CONTROLS.sub("", self.seen)

    def wait_for(self, pattern: str, *, after: int = 0) -> int:
        """Read until the text after that place matches; return the place behind the match."""
        limit = time.monotonic() + _PATIENCE_S
        while True:
            found = re.compile(pattern).search(self.text, after)
            if found:
                return found.end()
            if not self._read(limit):
                pytest.fail(f"{pattern!r} was never written; it wrote: {self.text!r}")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read until the command ended; return its exit code."""
        limit = time.monotonic() + _PATIENCE_S
        while self._read(limit):
            pass
        return self.process.wait(_PATIENCE_S)

    def _read(self, limit: float) -> bool:
        ready, _, _ = select.select([self._main], [], [], max(0.0, limit - time.monotonic()))
        try:
            data = os.read(self._main, 65536) if ready else b""
        except OSError:
            data = b""
        self._bytes += data
        return bool(data)


@contextmanager
def terminal(*args: str, columns: int = 120, rows: int = 40, **environ: str) -> Iterator[Terminal]:
    """Run `modeld` with these arguments; at the end it is gone."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "modeld", *args], stdin=other, stdout=other, stderr=other,
        env=clean_environment(TERM="xterm-256color", **environ),
    )  # fmt: skip
    os.close(other)
    try:
        yield Terminal(process, main)
    finally:
        process.kill()
        process.wait()
        os.close(main)


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without what decides about colours, widths and daemons."""
    ours = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ours and not name.startswith(("MODELD_ADDR", "MODELD_API", "MODELD_CONFIG"))
    }
    return kept | more
