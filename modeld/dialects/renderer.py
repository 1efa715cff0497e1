# SPDX-License-Identifier: GPL-3.0-only
"""What the edge needs of whoever writes an answer, in whatever dialect. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from modeld.core.events import Delta, Event, Failed, Finished, Last
from modeld.errors import Problem


class Gatherer(Protocol):
    """Writes one answer as a whole. Feed it every event once, in order.

    Attributes:
      last: the event that ended the request, once it came.
    """

    last: Last | None

    def take(self, events: Iterable[Event]) -> bytes | None:
        """Return the whole answer when `Finished` is among these, else None.

        Of a failure: the answer, in a dialect that tells failures with what came before; else None,
        and the failure becomes an error in the dialect's envelope.
        """
        ...


class Renderer(Gatherer, Protocol):
    """Writes one answer, as a whole or as a stream."""

    @property
    def still_here(self) -> bytes:
        """What keeps a silent stream alive. Not empty, and readers of the dialect skip it."""
        ...

    def lines(self, events: Sequence[Event]) -> bytes:
        """Return what these events add to the stream, ready for one write; may be empty."""
        ...

    def failure(self, problem: Problem) -> bytes:
        """Return the legal end of a stream for a request that broke outside of the engine."""
        ...


def shows_text(event: Event) -> bool:
    """Whether this event gives a stream its status: the first token, or the end."""
    match event:
        case Delta() | Finished() | Failed():
            return True
        case _:
            return False
