# SPDX-License-Identifier: GPL-3.0-only
"""How an answer that is told as a whole comes together, in whatever dialect. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from modeld.core.events import Embedded, Event, Failed, Finished, Last
from modeld.dialects.framing import number_list
from modeld.errors import Problem


class Gathering(ABC):
    """Gathers one answer: what dialects whose answers tell nothing of failures have in common.

    Attributes:
      last: the event that ended the request, once it came.
    """

    last: Last | None

    def __init__(self) -> None:
        self.last = None

    def take(self, events: Iterable[Event]) -> bytes | None:
        """Gather without lines: return the whole answer when `Finished` is among these, else None."""
        for event in events:
            match event:
                case Finished():
                    self.last = event
                    return self._whole(event)
                case Failed():
                    self.last = event
                case _:
                    self._gather(event)
        return None

    @abstractmethod
    def _gather(self, event: Event) -> None:
        """Keep what this event adds."""

    @abstractmethod
    def _whole(self, last: Finished, /) -> bytes | None:
        """Return the answer, or None when its end is none for this dialect: then `last` is a `Failed`."""


class Streaming(Gathering):
    """Writes one answer as a whole or as a stream, and tells in the stream of what broke it."""

    def failure(self, problem: Problem) -> bytes:
        """Return the last part of a stream that broke."""
        self.last = Failed(problem=problem)
        return self._broken(problem)

    @abstractmethod
    def _broken(self, problem: Problem, /) -> bytes:
        """Return what tells of this problem."""


class GatheredVectors(Gathering):
    """Gathers vectors, each of which becomes text as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self._vectors: list[bytes] = []

    def _gather(self, event: Event) -> None:
        if isinstance(event, Embedded):
            self._vectors += map(self._written, event.vectors)

    def _written(self, vector: bytes) -> bytes:
        """Return a vector of 32-bit floats as it stands in the answer."""
        return number_list(vector)
