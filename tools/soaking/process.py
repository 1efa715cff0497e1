# SPDX-License-Identifier: GPL-3.0-only
"""The process of a daemon that is soaked: its log, its address, its end."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

START_S = 60.0
STOP_S = 40.0


class SoakError(Exception):
    """The soak cannot go on; the message says what and why."""


class Process:
    """A daemon that was started.

    Attributes:
      pid, port: of the daemon.
      log: the file that has its standard error.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.port = 0
        self.log = log

    def tail(self, lines: int = 30) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_until_listening(self) -> None:
        """Wait for its address. Raises: SoakError with the end of its log."""
        until = time.monotonic() + START_S
        while not (found := re.search(r"listens on \S+:(\d+)", self.log.read_text(errors="replace"))):
            if time.monotonic() > until or self.process.poll() is not None:
                raise SoakError(f"the daemon did not start:\n{self.tail()}")
            time.sleep(0.02)  # another process writes the log
        self.port = int(found[1])

    def stop(self) -> int:
        """Stop it with SIGTERM; return its exit code. Raises: SoakError when it does not go."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise SoakError(f"the daemon did not stop within {STOP_S:g} s:\n{self.tail()}") from None
