# SPDX-License-Identifier: GPL-3.0-only
"""Keep the daemon's last events, and pass them to readers and to the file.

Readers have no queue of their own: each is a place in the one ring. So a slow one costs nothing; when
what it had not read is overwritten, it is told how much that was, and goes on with what is there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import trio

from modeld.domain.daemon_events import MOST_REASON, EventKind, FleetEvent, Position
from modeld.domain.request import Priority
from modeld.domain.status import EventsStatus
from modeld.errors import QueueFull

KEPT_EVENTS = 4096
"""Some 2 MiB at most. What a reader may lag behind, and how far back one that comes again may go on."""
MOST_READERS = 64
"""Each costs some microseconds an event."""
MOST_AT_ONCE = 256
"""Events that a reader is given at a time: some 64 KiB of lines."""


class EventSink(Protocol):
    """Where all events go besides. Nothing of it may wait."""

    def put(self, event: FleetEvent) -> None:
        """Take an event."""
        ...

    def status(self) -> EventsStatus:
        """Tell how it goes."""
        ...

    def reopen(self) -> None:
        """Open the file again, as soon as that can be: somebody has moved it away."""
        ...


class EventLog:
    """The events of this run of the daemon.

    Attributes:
      run: name of this run; part of every event's id.
      last: number of the last event.
      readers: how many read along.
    """

    def __init__(
        self,
        sink: EventSink | None = None,
        *,
        kept: int = KEPT_EVENTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run = f"{time.time_ns() // 1_000_000:x}"
        self.last = 0
        self.readers = 0
        self._sink = sink
        self._clock = clock
        self._began = clock()
        self._ring: list[FleetEvent | None] = [None] * kept
        self._counts: Counter[str] = Counter()
        self._missed = 0
        self._news = trio.lowlevel.ParkingLot()
        self._closed = False

    def record(
        self,
        kind: EventKind,
        *,
        model: str = "",
        ticket: int = 0,
        request: str = "",
        operation: str = "",
        key: str = "",
        cause: str = "",
        reason: str = "",
        for_model: str = "",
        priority: Priority | None = None,
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        """Write down that this happened now. Never waits."""
        self.last += 1
        event = FleetEvent(
            seq=self.last,
            run=self.run,
            at_unix=round(time.time(), 3),
            uptime_ms=round((self._clock() - self._began) * 1000, 1),
            kind=kind,
            model=model,
            ticket=ticket,
            request=request,
            operation=operation,
            key=key,
            cause=cause,
            reason=reason if len(reason) <= MOST_REASON else reason[: MOST_REASON - 3] + "...",
            for_model=for_model,
            priority=priority,
            numbers=numbers or {},
        )
        self._ring[self.last % len(self._ring)] = event
        self._counts[kind] += 1
        if self._sink is not None:
            self._sink.put(event)
        if self._news:
            self._news.unpark_all()

    def follow(self, after: Position | None = None) -> EventReader:
        """Read along: from now on, or after an event that was seen. The caller closes the reader.

        Raises: QueueFull when `MOST_READERS` do so already.
        """
        if self.readers >= MOST_READERS:
            raise QueueFull(
                f"{MOST_READERS} readers follow the events already; close one of them, or read events_file",
                retry_after_s=5.0,
            )
        return EventReader(self, after)

    def close(self) -> None:
        """Let readers have what there is, and then their end. What comes later only goes to the sink."""
        self._closed = True
        self._news.unpark_all()

    def reopen(self) -> bool:
        """Open the file again, if there is one: it was moved away. Returns whether there is one."""
        if self._sink is None:
            return False
        self._sink.reopen()
        return True

    def status(self) -> EventsStatus:
        """Return what was recorded and written so far, and what is wrong."""
        written = EventsStatus() if self._sink is None else self._sink.status()
        return EventsStatus(
            run=self.run,
            recorded=dict(self._counts),
            readers=self.readers,
            missed=self._missed,
            target=written.target,
            written=written.written,
            dropped=written.dropped,
            problem=written.problem,
        )

    # --- for readers ---

    @property
    def first_kept(self) -> int:
        """Number of the oldest event that is still there."""
        return max(1, self.last - len(self._ring) + 1)

    @property
    def closed(self) -> bool:
        """Whether readers get no more."""
        return self._closed

    def between(self, first: int, end: int) -> list[FleetEvent]:
        """Return the kept events from number `first` to before `end`."""
        found = (self._ring[number % len(self._ring)] for number in range(first, end))
        return [event for event in found if event is not None]

    async def wait_for_news(self) -> None:
        """Wait for another event, or the end."""
        await self._news.park()

    def gap(self, missed: int, last: int, reason: str) -> FleetEvent:
        """Return the event that stands for those up to number `last` that a reader has not been given."""
        self._missed += missed
        return FleetEvent(
            seq=last,
            run=self.run,
            at_unix=round(time.time(), 3),
            uptime_ms=round((self._clock() - self._began) * 1000, 1),
            kind=EventKind.MISSED,
            reason=reason,
            numbers={"events": missed} if missed else {},
        )


class EventReader:
    """One who reads along."""

    def __init__(self, log: EventLog, after: Position | None) -> None:
        self._log = log
        self._next = log.last + 1
        self._gap: FleetEvent | None = None
        self._open = True
        log.readers += 1
        if after is None:
            return
        if after.run == log.run and after.seq <= log.last:
            self._next = after.seq + 1
            return
        # What there was after that event, nobody knows any more; all that is kept of this run is new.
        self._next = log.first_kept
        why = "the daemon was restarted since then; what it told in between is in events_file, if that is set"
        self._gap = log.gap(self._next - 1, self._next - 1, why)

    async def next(self) -> tuple[FleetEvent, ...]:
        """Wait for events that were not given yet; none: there will be no more.

        Cancellation: loses nothing.
        """
        log = self._log
        if self._gap is None and self._next > log.last and not log.closed:
            await log.wait_for_news()
        else:
            await trio.lowlevel.checkpoint()
        given: list[FleetEvent] = []
        if self._gap is not None:
            given.append(self._gap)
            self._gap = None
        missed = log.first_kept - self._next
        if missed > 0:
            self._next = log.first_kept
            given.append(
                log.gap(missed, self._next - 1, f"{missed} events came faster than they were read here")
            )
        end = min(log.last + 1, self._next + MOST_AT_ONCE)
        given += log.between(self._next, end)
        self._next = end
        return tuple(given)

    def close(self) -> None:
        """Leave. Idempotent."""
        if self._open:
            self._open = False
            self._log.readers -= 1
