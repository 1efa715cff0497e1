# SPDX-License-Identifier: GPL-3.0-only
"""Render NDJSON lines, keep-alives and vectors; contracts of renderers."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from modeld.domain.request_events import Delta, Embedded, Event, Failed, Finished, Last, TokenLogprob
from modeld.errors import Problem

NDJSON_TYPE = "application/x-ndjson"
"""Content type of a stream with one JSON value per line."""

SSE_TYPE = "text/event-stream"
"""Content type of a stream of server-sent events."""

BLANK_LINE = b"\n"
"""Says "still here" in a silent stream. Readers of NDJSON skip empty lines."""

_encoder = msgspec.json.Encoder()


def line(value: msgspec.Struct) -> bytes:
    """Return `value` as one line of compact JSON, its end included."""
    return _encoder.encode(value) + b"\n"


def json_bytes(value: object) -> bytes:
    """Return `value` as compact JSON without a line end."""
    return _encoder.encode(value)


def json_string(text: str) -> bytes:
    """Return `text` as a JSON string, quotes included."""
    return _encoder.encode(text)


def number_list(vector: bytes) -> bytes:
    """Return a vector of 32-bit floats as a JSON list: nine digits, which give each of them back exactly."""
    count = len(vector) // 4
    return b"[%b]" % (b",".join([b"%.9g"] * count) % struct.unpack(f"<{count}f", vector))


# ----------------------------------------------------------------------
# How an answer that is told as a whole comes together, in whatever dialect. Pure.


class BaseResponseBuilder(ABC):
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


class StreamRenderer(BaseResponseBuilder):
    """Writes one answer as a whole or as a stream, and tells in the stream of what broke it."""

    def failure(self, problem: Problem) -> bytes:
        """Return the last part of a stream that broke."""
        self.last = Failed(problem=problem)
        return self._broken(problem)

    @abstractmethod
    def _broken(self, problem: Problem, /) -> bytes:
        """Return what tells of this problem."""


class VectorResponseBuilder(BaseResponseBuilder):
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


# ----------------------------------------------------------------------
# What the edge needs of whoever writes an answer, in whatever dialect. Pure.


class ResponseBuilder(Protocol):
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


class EventRenderer(ResponseBuilder, Protocol):
    """Writes one answer, as a whole or as a stream."""

    @property
    def keepalive(self) -> bytes:
        """What keeps a silent stream alive. Not empty, and readers of the dialect skip it."""
        ...

    def lines(self, events: Sequence[Event]) -> bytes:
        """Return what these events add to the stream, ready for one write; may be empty."""
        ...

    def failure(self, problem: Problem) -> bytes:
        """Return the legal end of a stream for a request that broke outside of the engine."""
        ...


def starts_response(event: Event) -> bool:
    """Whether this event gives a stream its status: the first token, or the end."""
    match event:
        case Delta() | Finished() | Failed():
            return True
        case _:
            return False


# ----------------------------------------------------------------------
# How the probability of a token is written, in whatever dialect. Pure.

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write; OpenAI's own value for tokens out of sight."""


def rounded(logprob: float) -> float:
    """Return a log-probability as it is written."""
    return round(max(logprob, LEAST_LOGPROB), 6)


def text_of(token: TokenLogprob) -> str:
    """Return the text of a token, with U+FFFD for a part of a character: its bytes are told alongside it."""
    return token.text.decode(errors="replace")
