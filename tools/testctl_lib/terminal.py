# SPDX-License-Identifier: GPL-3.0-only
"""Print lines and the progress of long steps, in colour on a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time


def coloured(code: str, text: str) -> str:
    """Return the text in an ANSI colour, if a person reads it."""
    wanted = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return f"\033[{code}m{text}\033[0m" if wanted else text


def say(text: str = "") -> None:
    """Print a line at once, so that it keeps its place among the output of children."""
    print(text, flush=True)


def heading(text: str) -> None:
    """Print the title of what comes next."""
    say(coloured("1", f"== {text}"))


def duration(seconds: float) -> str:
    """Return `4.2 s` or `7 min 03 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"


class Progress:
    """One line about a long step: redrawn on a terminal, elsewhere a new line every 15 s."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self._tty = sys.stdout.isatty()
        self._next = self.started + (0 if self._tty else 15)
        self._frames = "|/-\\"
        self._count = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the step began."""
        return time.monotonic() - self.started

    def update(self, detail: str = "") -> None:
        """Show that the step is under way; call it as often as you like."""
        now = time.monotonic()
        if now < self._next:
            return
        text = f"{self.title} {detail}".rstrip() + f" ({duration(self.elapsed)})"
        if self._tty:
            self._count += 1
            width = shutil.get_terminal_size().columns - 4
            print(f"\r\033[K{self._frames[self._count % 4]} {text[:width]}", end="", flush=True)
            self._next = now + 0.1
        else:
            say(f"   {text}")
            self._next = now + 15

    def end(self, mark: str = "ok", detail: str = "") -> None:
        """Replace the line by its outcome."""
        if self._tty:
            print("\r\033[K", end="")
        code = "32" if mark == "ok" else "31"
        text = f"{self.title} {detail}".rstrip()
        say(f"{coloured(code, mark)} {text} ({duration(self.elapsed)})")
