# SPDX-License-Identifier: GPL-3.0-only
"""How an event of the daemon is told in a line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import tzinfo

import msgspec
from rich.text import Text

from modeld.cli.console.figures import clock, plain, short

_STYLES = {
    "ready": "green",
    "loading": "cyan",
    "evicting": "yellow",
    "draining": "magenta",
    "refused": "red",
    "failed": "bold red",
    "breaker_opened": "bold red",
    "missed": "bold yellow",
}
_KIND_WIDTH = 17
"""The longest kinds."""


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """An event of `GET /events`, as far as it is shown; docs/events.md has them all."""

    kind: str
    seq: int = 0
    run: str = ""
    at_unix: float = 0.0
    model: str = ""
    for_model: str = ""
    ticket: int = 0
    operation: str = ""
    key: str = ""
    cause: str = ""
    reason: str = ""
    numbers: Mapping[str, float] = {}

    @property
    def is_progress(self) -> bool:
        """Whether it tells only how far a load is."""
        return self.kind == "loading" and not self.reason

    @property
    def id(self) -> str:
        """What a reader names to go on after it; empty if it has no place."""
        return f"{self.run}-{self.seq}" if self.run else ""


def told(event: Happening, zone: tzinfo | None = None) -> Text:
    """Return its line: time, kind, model, who it is about, why, and the figures."""
    parts = [
        short(event.model),
        f"for {short(event.for_model)}" if event.for_model else "",
        f"request {event.ticket}" if event.ticket else "",
        f"operation {plain(event.operation)}" if event.operation else "",
        f"by {plain(event.key)}" if event.key else "",
        f"({plain(event.cause)})" if event.cause else "",
    ]
    about = " ".join(part for part in parts if part)
    figures = " ".join(f"{plain(name)}={value:g}" for name, value in event.numbers.items())
    rest = "; ".join(part for part in (plain(event.reason), figures) if part)
    sentence = ": ".join(part for part in (about, rest) if part)
    kind = plain(event.kind)
    return Text.assemble(
        (clock(event.at_unix, zone), "dim"),
        "  ",
        (kind.ljust(_KIND_WIDTH), _STYLES.get(event.kind, "")),
        "  ",
        sentence,
    )
