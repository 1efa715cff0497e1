# SPDX-License-Identifier: GPL-3.0-only
"""Render choices: what `/v1/chat/completions` and `/v1/completions` share. Pure.

An answer has several choices, each a generation of its own: events come with the index of theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import msgspec

from modeld.dialects.common.streaming import json_bytes, json_string
from modeld.dialects.openai.common import FinishText, ParsedRequest, effective_end, error_bytes, usage_body
from modeld.domain.request_events import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Last,
    Logprobs,
    Started,
    Stats,
    Usage,
)
from modeld.errors import Problem

SSE_TYPE = "text/event-stream"
KEEPALIVE = b": still here\n\n"
"""A comment, which readers of server-sent events skip."""
DONE = b"data: [DONE]\n\n"

ChoiceEvent = tuple[int, Event]
"""The index of a choice, and what it lives through."""


class ChoiceRenderer(ABC):
    """Writes one answer, as a whole or as a stream. Feed it every event once, in order.

    Attributes:
      last: the event that ended the request: all choices have ended, or one of them failed.
    """

    keepalive = KEEPALIVE
    kind: str
    """The `object` of a chunk."""

    def __init__(self, asked: ParsedRequest, *, answer_id: str, model: str, created: int) -> None:
        self.last: Last | None = None
        self._asked = asked
        self._count = len(asked.orders)
        self._ended: dict[int, Finished] = {}
        self._id = answer_id
        self._model = model
        self._created = created
        self._head = b'data: {"id":%b,"object":%b,"created":%d,"model":%b,' % (
            json_string(answer_id),
            json_string(self.kind),
            created,
            json_string(model),
        )
        self._tail = b',"usage":null}\n\n' if asked.include_usage else b"}\n\n"

    def lines(self, events: Sequence[ChoiceEvent]) -> bytes:
        """Return what these events add to the stream; may be empty."""
        out: list[bytes] = []
        for index, event in events:
            match event:
                case Started(thought=thought):
                    self._begin_in(index, thought)
                case Delta(text=text, logprobs=logprobs):
                    out.append(self._delta(index, text, logprobs))
                case Finished() | Failed() if self.last is None:
                    out.append(self._end(index, event))
                case _:
                    pass
        return b"".join(out)

    def take(self, events: Iterable[ChoiceEvent]) -> bytes | None:
        """Return the whole answer when all choices have ended, else None; of a failure, nothing."""
        for index, event in events:
            match event:
                case Started(thought=thought):
                    self._begin_in(index, thought)
                case Delta(text=text, logprobs=logprobs):
                    self._gather(index, text, logprobs)
                case Finished() | Failed() if self.last is None:
                    self._note_end(index, event)
                case _:
                    pass
        return json_bytes(self._answer(self.last.usage)) + b"\n" if isinstance(self.last, Finished) else None

    def failure(self, problem: Problem) -> bytes:
        """Return the end of a stream that broke: clients of OpenAI raise what is under `error`."""
        self.last = Failed(problem=problem)
        return b"data: %b\n\n%b" % (error_bytes(problem), DONE)

    @abstractmethod
    def _delta(self, index: int, text: str, logprobs: tuple[Logprobs, ...]) -> bytes:
        """Return the chunks of more text of a choice."""

    @abstractmethod
    def _finish(self, index: int, reason: FinishReason) -> bytes:
        """Return the last chunks of a choice."""

    @abstractmethod
    def _gather(self, index: int, text: str, logprobs: tuple[Logprobs, ...]) -> None:
        """Keep more text of a choice for the answer as a whole."""

    def _begin_in(self, index: int, thought: str) -> None:  # noqa: B027  # only chats look for calls
        """Take note of the marker of a thought in which the text of a choice begins; empty: in none."""

    def _rest(self, _index: int) -> bytes:
        """Return the chunks of text of a choice that was held back."""
        return b""

    @abstractmethod
    def _answer(self, usage: Usage) -> msgspec.Struct:
        """Return the whole answer."""

    def _end(self, index: int, event: Finished | Failed) -> bytes:
        seen = self._note_end(index, event)
        if isinstance(seen, Failed):
            held = [self._rest(index) for index in range(self._count) if index not in self._ended]
            return b"".join(held) + self.failure(seen.problem)
        data = self._finish(index, seen.reason)
        if self.last is None:
            return data
        usage = b""
        if self._asked.include_usage:
            counts = json_bytes(usage_body(self.last.usage))
            usage = b'%b"choices":[],"usage":%b}\n\n' % (self._head, counts)
        return data + usage + DONE

    def _note_end(self, index: int, event: Finished | Failed) -> Finished | Failed:
        seen = effective_end(event)
        if isinstance(seen, Failed):
            self.last = seen
        elif isinstance(seen, Finished):
            self._ended[index] = seen
            if len(self._ended) == self._count:
                self.last = _together(self._ended, self._asked.n)
        return seen if isinstance(seen, Failed) else self._ended[index]


def finish_text(reason: FinishReason) -> FinishText:
    """Return why a choice ended as OpenAI spells it: what was cut off has `length`."""
    return "stop" if reason is FinishReason.STOP else "length"


def _together(ended: dict[int, Finished], n: int) -> Finished:
    """Return the end of all choices as one: each prompt counts once, as its choices share it."""
    counts = [(index, finished.usage) for index, finished in ended.items()]
    longest = max(ended.values(), key=lambda finished: finished.stats.duration_s, default=None)
    return Finished(
        reason=FinishReason.STOP
        if all(finished.reason is FinishReason.STOP for finished in ended.values())
        else FinishReason.LENGTH,
        usage=Usage(
            prompt_tokens=sum(usage.prompt_tokens for index, usage in counts if index % n == 0),
            completion_tokens=sum(usage.completion_tokens for _, usage in counts),
            cached_tokens=sum(usage.cached_tokens for index, usage in counts if index % n == 0),
        ),
        stats=Stats() if longest is None else longest.stats,
    )
