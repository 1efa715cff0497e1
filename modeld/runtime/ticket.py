# SPDX-License-Identifier: GPL-3.0-only
"""One request's ticket, and the mailbox its events arrive in.

The scheduler and the instance put events in; one reader takes them out. Putting never blocks:
a backlog over its limit ends this stream and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from modeld.domain.request_events import (
    Delta,
    Embedded,
    Event,
    Failed,
    Finished,
    FinishReason,
    Last,
    Loading,
    Queued,
    Started,
    Stats,
    Usage,
)
from modeld.errors import Problem, ReaderTooSlow

if TYPE_CHECKING:
    from modeld.domain.model import ModelSpec
    from modeld.domain.request import Order


_EVENT_OVERHEAD_BYTES = 64
"""What an event weighs in a backlog besides its text: about one line of JSON."""


Take = Callable[[Sequence[Event]], bool]
"""Takes events as they are put. False: the reader's task has to go on. Must neither wait nor raise."""


class Ticket:
    """One request between its submission and its last event.

    Attributes:
      id: number, unique in this daemon's life.
      request_id: the id that logs and answers carry.
      order: what was asked for, and on which terms.
      model: the model that serves it, resolved.
      begun: whether any of its answer was put in.
      loading: whether its model was being loaded when it was last told anything.
      position: its place in the queue when that was last told, from 1.
      eta_known: whether it was told how long that will take.
      notices: what of its schema or its functions is not kept, each in a sentence; known with the slot.
    """

    def __init__(
        self,
        *,
        ticket_id: int,
        request_id: str,
        order: Order,
        model: ModelSpec,
        max_backlog_bytes: int,
        on_close: Callable[[Ticket], None],
    ) -> None:
        self.id = ticket_id
        self.request_id = request_id
        self.order = order
        self.model = model
        self.created = trio.current_time()
        self.admitted: float | None = None
        self.first_token: float | None = None
        self.begun = False
        self.load_s = 0.0
        self.position: int | None = None
        self.eta_known = False
        self.loading = False
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.thought = ""
        self.notices: tuple[str, ...] = ()
        self.completion_tokens = 0
        self._last_token: float | None = None
        self._mailbox: list[Event] = []
        self._backlog = 0
        self._max_backlog = max_backlog_bytes
        self._reader = trio.lowlevel.ParkingLot()
        self._take: Take | None = None
        self._last: Last | None = None
        self._closed = False
        self._on_close = on_close

    @property
    def usage(self) -> Usage:
        """The tokens counted so far."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
        )

    @property
    def ended(self) -> bool:
        """Whether the last event was put in (it may not have been read yet)."""
        return self._last is not None

    @property
    def outcome(self) -> str:
        """How it ended: a finish reason or the kind of a problem; `cancelled` while it has not."""
        match self._last:
            case Finished(reason=reason):
                return reason.value
            case Failed(problem=problem):
                return problem.kind
            case None:
                return FinishReason.CANCELLED.value

    @property
    def problem(self) -> Problem | None:
        """The problem it ended with, if it did."""
        return self._last.problem if isinstance(self._last, Failed) else None

    @property
    def slot_s(self) -> float | None:
        """Seconds since it got its slot; None if it has none."""
        return None if self.admitted is None else trio.current_time() - self.admitted

    @property
    def closed(self) -> bool:
        """Whether the reader has left."""
        return self._closed

    async def next(self) -> tuple[Event, ...]:
        """Wait until there is at least one event and take all there are, in order.

        The last tuple ends with `Finished` or `Failed`; do not call again after it.
        Cancellation loses no event.
        """
        if self._mailbox:
            await trio.lowlevel.checkpoint_if_cancelled()
        while not self._mailbox:
            await self._reader.park()
        return self._empty()  # noqa: ASYNC910  # every token comes by here, and its reader yields when it writes; a checkpoint costs a turn of the loop

    async def drain(self, take: Take) -> None:
        """Give all events to `take`, in the turn of whoever puts them, until it returns False.

        So that no task need run for each event. What is put after that waits for the next call.
        Cancellation loses no event: what `take` was given, it has.
        """
        if self._mailbox:
            await trio.lowlevel.checkpoint_if_cancelled()
            if not take(self._empty()):
                return  # noqa: ASYNC910  # what was not taken is written now, which yields; a checkpoint would cost a turn of the loop
        self._take = take
        try:
            await self._reader.park()
        finally:
            self._take = None

    def close(self) -> None:
        """Say that nobody reads any more. Frees what the request holds. Idempotent, never waits."""
        if not self._closed:
            self._closed = True
            self._on_close(self)

    def put(self, event: Event) -> None:
        """Add an event, and let the reader have it. After the last event, or `close`, it is dropped."""
        self.add(event, trio.current_time())
        self.flush()

    def flush(self) -> None:
        """Let the reader have what was added."""
        if not self._mailbox:
            return
        if self._take is None or not self._take(self._empty()):
            self._take = None
            self._reader.unpark()

    def add(self, event: Event, now: float) -> None:
        """Add an event that came `now` (Trio's clock); the reader has it after `flush`, with others."""
        if self._last is not None or self._closed:
            return
        match event:
            case Delta(text=text):
                self._last_token = now
                self._backlog += len(text.encode()) + _EVENT_OVERHEAD_BYTES
                if self._backlog > self._max_backlog:
                    self._overflow()
                    return
            case Started():
                self.first_token = now
                self.begun = True
            case Embedded():
                self.begun = True
            case Loading() | Queued():
                self.loading = isinstance(event, Loading)
            case Finished() | Failed():
                self._last = event
            case _:
                pass
        self._mailbox.append(event)

    def admit(
        self, prompt_tokens: int, cached_tokens: int, thought: str = "", notices: tuple[str, ...] = ()
    ) -> None:
        """Note that it has a slot, how long its prompt is, and the thought that the prompt leaves open.

        `notices`: what of its schema or its functions is not kept.
        """
        self.notices = notices
        self.admitted = trio.current_time()
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = cached_tokens
        self.thought = thought

    def restart(self) -> None:
        """Forget the slot it had: its engine died before anything of its answer came."""
        self.admitted = None
        self.position = None
        self.eta_known = False
        self.prompt_tokens = self.cached_tokens = 0

    def finish(self, reason: FinishReason, stop: str = "") -> None:
        """Put the `Finished` event, with what was counted and measured here."""
        self.put(Finished(reason=reason, usage=self.usage, stats=self.stats(), stop=stop))

    def fail(self, problem: Problem) -> None:
        """Put the `Failed` event, with what was counted and measured here."""
        self.put(Failed(problem=problem, usage=self.usage, stats=self.stats()))

    def stats(self) -> Stats:
        """Return the durations up to now."""
        now = trio.current_time()
        waited = (self.admitted if self.admitted is not None else now) - self.created
        tokens = self.completion_tokens
        rate = 0.0
        if tokens > 1 and self.first_token is not None and self._last_token is not None:
            span = self._last_token - self.first_token
            rate = (tokens - 1) / span if span > 0 else 0.0
        return Stats(
            duration_s=now - self.created,
            queue_s=max(0.0, waited - self.load_s),
            load_s=self.load_s,
            ttft_s=None if self.first_token is None else self.first_token - self.created,
            tokens_per_second=rate,
        )

    def _empty(self) -> tuple[Event, ...]:
        """Take everything out of the mailbox."""
        events = tuple(self._mailbox)
        self._mailbox.clear()
        self._backlog = 0
        return events

    def _overflow(self) -> None:
        self.fail(
            ReaderTooSlow(
                f"the reader fell more than {self._max_backlog} bytes behind; "
                "read faster, or raise max_stream_backlog"
            ).as_problem()
        )
        self._on_close(self)
