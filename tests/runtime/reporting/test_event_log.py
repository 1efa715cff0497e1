# SPDX-License-Identifier: GPL-3.0-only
"""The ring of events: who reads along sees all of it, or is told how much he missed."""

from __future__ import annotations

import pytest
import trio

from modeld.domain.daemon_events import MOST_REASON, EventKind, FleetEvent, Position, as_json
from modeld.domain.status import EventsStatus
from modeld.errors import QueueFull
from modeld.runtime.reporting.event_log import MOST_AT_ONCE, MOST_READERS, EventLog, EventReader


def fill(log: EventLog, count: int) -> None:
    for _ in range(count):
        log.record(EventKind.ARRIVED, model="a.gguf")


async def take(reader: EventReader) -> list[FleetEvent]:
    """All that is there."""
    found: list[FleetEvent] = []
    while not found or found[-1].seq < reader._log.last:
        found += await reader.next()
    return found


async def test_a_reader_gets_what_happens_from_now_on() -> None:
    """In order, without gaps, and nothing of before."""
    log = EventLog()
    fill(log, 3)
    reader = log.follow()
    fill(log, 600)
    events = await take(reader)
    assert [event.seq for event in events] == list(range(4, 604))
    assert {event.run for event in events} == {log.run}
    reader.close()
    reader.close()
    assert log.readers == 0


async def test_a_reader_waits_for_news(autojump_clock: trio.testing.MockClock) -> None:
    """Each event wakes all who wait, and each of them gets it."""
    log = EventLog(clock=trio.current_time)
    got: list[tuple[FleetEvent, ...]] = []

    async def read() -> None:
        got.append(await log.follow().next())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(read)
        await trio.sleep(2)
        log.record(EventKind.READY, model="a.gguf", reason="it was loaded", numbers={"slots": 2})
    assert got[0] == got[1]
    [event] = got[0]
    assert (event.kind, event.model, event.uptime_ms) == (EventKind.READY, "a.gguf", 2000.0)


async def test_a_slow_reader_is_told_what_it_missed() -> None:
    """One event stands for all that were overwritten; what is still kept follows, without a gap."""
    log = EventLog(kept=100)
    reader = log.follow()
    fill(log, 250)
    events = await take(reader)
    assert [event.seq for event in events] == [150, *range(151, 251)]
    assert (events[0].kind, events[0].numbers) == (EventKind.MISSED, {"events": 150})
    assert log.status().missed == 150
    fill(log, 5)
    assert [event.kind for event in await take(reader)] == [EventKind.ARRIVED] * 5


async def test_a_reader_that_comes_again_goes_on_where_it_was() -> None:
    """After the event it names, also when that is the newest; with a gap told when it is gone."""
    log = EventLog(kept=10)
    fill(log, 8)
    assert [event.seq for event in await take(log.follow(Position(log.run, 5)))] == [6, 7, 8]
    at_the_end = log.follow(Position(log.run, 8))
    fill(log, 12)
    assert [event.seq for event in await take(log.follow(Position(log.run, 5)))] == [10, *range(11, 21)]
    assert [event.seq for event in await take(at_the_end)] == [10, *range(11, 21)]


async def test_after_a_restart_a_reader_gets_all_of_the_new_run() -> None:
    """An id of another run is answered with a gap of unknown size, and everything that is kept."""
    log = EventLog(kept=10)
    fill(log, 3)
    first, *others = await take(log.follow(Position("another", 700)))
    assert (first.kind, first.seq, first.numbers) == (EventKind.MISSED, 0, {})
    assert "restarted" in first.reason
    assert [event.seq for event in others] == [1, 2, 3]


async def test_the_end_comes_after_the_last_event() -> None:
    """Who is behind gets everything that was there when it ended, and then nothing, at once."""
    log = EventLog()
    reader = log.follow()
    fill(log, MOST_AT_ONCE + 1)
    log.close()
    assert len(await reader.next()) == MOST_AT_ONCE
    assert len(await reader.next()) == 1
    assert await reader.next() == ()


async def test_waiting_readers_hear_of_the_end() -> None:
    """One that waits for news gets the end instead."""
    log = EventLog()
    ends: list[tuple[FleetEvent, ...]] = []

    async def read() -> None:
        ends.append(await log.follow().next())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        log.close()
    assert ends == [()]


async def test_readers_are_bounded() -> None:
    """One more is refused with a time to try again, until another one has left."""
    log = EventLog()
    readers = [log.follow() for _ in range(MOST_READERS)]
    with pytest.raises(QueueFull) as refused:
        log.follow()
    assert refused.value.retry_after_s
    readers[0].close()
    assert log.follow() is not None


def test_a_line_stays_below_a_page() -> None:
    """Whatever is in a reason or a name: pipes take up to 4,096 bytes in one piece."""
    log = EventLog()
    name = "\x01" * 250 + ".gguf"
    log.record(EventKind.FAILED, model=name, reason="\x01" * 10_000, request="x" * 128)
    [event] = log.between(1, 2)
    assert len(event.reason) == MOST_REASON
    assert len(as_json(event)) < 6000
    log.record(EventKind.FAILED, model="é" * 120 + ".gguf", reason="é" * 10_000, request="x" * 128)
    [event] = log.between(2, 3)
    assert len(as_json(event)) < 4096


def test_events_are_counted_by_kind_and_all_go_to_the_sink() -> None:
    """Also when nobody reads along; what the sink says of itself is in the status."""

    class Sink:
        def __init__(self) -> None:
            self.events: list[FleetEvent] = []
            self.reopened = 0

        def put(self, event: FleetEvent) -> None:
            self.events.append(event)

        def reopen(self) -> None:
            self.reopened += 1

        def status(self) -> EventsStatus:
            return EventsStatus(target="here", written=2, dropped=1, problem="full")

    sink = Sink()
    log = EventLog(sink)
    fill(log, 2)
    log.close()
    log.record(EventKind.DAEMON_STOPPED)
    assert [event.seq for event in sink.events] == [1, 2, 3]
    assert log.status() == EventsStatus(
        run=log.run,
        recorded={"arrived": 2, "daemon_stopped": 1},
        target="here",
        written=2,
        dropped=1,
        problem="full",
    )
    assert log.reopen()
    assert sink.reopened == 1
    assert not EventLog().reopen()
