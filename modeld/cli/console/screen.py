# SPDX-License-Identifier: GPL-3.0-only
"""Write to a terminal with its width and colours, or plain text to a pipe."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType

_ENDLESS = 100_000
"""Width of a pipe: no line is ever broken there."""


class Screen:
    """Standard output. `width` is None where it is no terminal."""

    def __init__(self) -> None:
        _survive_odd_encodings()
        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
        self.is_terminal = self.console.is_terminal
        """Also true where FORCE_COLOR asks to treat a pipe as one, as rich has it."""

    @property
    def width(self) -> int | None:
        """Cells of a line, at this moment: terminals are resized."""
        return self.console.width if self.is_terminal else None

    def show(self, parts: Iterable[RenderableType]) -> None:
        """Print the parts below each other."""
        if self.is_terminal:
            for part in parts:
                self.console.print(part)
        else:
            sys.stdout.write(as_text(parts))
            sys.stdout.flush()

    def json(self, data: bytes) -> None:
        """Print an answer of the daemon as it is, on a line of its own."""
        sys.stdout.flush()
        sys.stdout.buffer.write(data.rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()


def error_console() -> Console:
    """The console of standard error, for progress and complaints."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def as_text(parts: Iterable[RenderableType], width: int | None = None) -> str:
    """Render without colours, control sequences and blanks at the ends of lines."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=width or _ENDLESS,
        color_system=None,
        force_terminal=False,
        highlight=False,
        markup=False,
    )
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def _survive_odd_encodings() -> None:
    """Write what the locale's encoding lacks by its number, instead of ending in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
