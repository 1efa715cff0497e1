# SPDX-License-Identifier: GPL-3.0-only
"""What the whole runtime tells: every request and every model has its story, complete and in order."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from support.scheduler_driver import limits, spec
from support.scheduler_harness import SchedulerHarness, last, read, running_scheduler

from modeld.domain.daemon_events import EventKind, FleetEvent
from modeld.domain.request import Priority
from modeld.domain.request_events import Failed, Finished, Queued
from modeld.errors import InvalidGrammar, ModeldError
from modeld.runtime.scheduling.queue_positions import TELL_EVERY_S


def events_of(here: SchedulerHarness) -> list[FleetEvent]:
    """All events so far."""
    log = here.observer.events
    return log.between(log.first_kept, log.last + 1)


def story(here: SchedulerHarness, ticket: int) -> list[str]:
    """The kinds of one request's events."""
    return [event.kind.value for event in events_of(here) if event.ticket == ticket]


async def test_a_request_has_its_story(autojump_clock: trio.testing.MockClock) -> None:
    """It arrives, waits, is granted a place, has its slot and ends, with the durations of each."""
    async with running_scheduler(
        [spec("a", 70, slots=1)], limits(100), {"a.gguf": "load_s=2 step_s=1"}
    ) as here:
        ticket = here.ask("a", max_tokens=3, timeout_s=60.0, priority=Priority.HIGH)
        await last(ticket)
        mine = [event for event in events_of(here) if event.ticket == ticket.id]
        arrived, queued, granted, started, ended = mine
        assert [event.kind.value for event in mine] == ["arrived", "queued", "granted", "started", "ended"]
        assert {(event.model, event.request) for event in mine} == {("a.gguf", "test")}
        assert arrived.priority is Priority.HIGH
        assert arrived.numbers == {"need_mb": 70.0, "slots": 1, "deadline_ms": 60_000}
        assert queued.numbers == {"position": 1}
        assert granted.numbers == {"waited_ms": 2000.0}
        assert started.numbers == {"queue_ms": 0.0, "load_ms": 2000.0, "prompt_tokens": 3, "cached_tokens": 0}
        assert ended.cause == "length"
        assert ended.numbers["slot_ms"] == pytest.approx(2000.0)
        assert ended.numbers["completion_tokens"] == 3
        assert ended.uptime_ms - arrived.uptime_ms == ended.numbers["duration_ms"]


async def test_words_of_a_request_are_in_no_event(autojump_clock: trio.testing.MockClock) -> None:
    """What a refusal quotes is for its client; the event has the kind and a sentence of its own."""
    async with running_scheduler([spec("a")], limits(), {"a.gguf": "step_s=1"}) as here:
        ticket = here.ask("a", max_tokens=3)
        ticket.fail(InvalidGrammar("no rule is named secret").as_problem())
        ticket.close()
        [ended] = [event for event in events_of(here) if event.cause == "invalid_grammar"]
        assert ended.reason == InvalidGrammar.brief


async def test_every_arrival_ends_exactly_once(autojump_clock: trio.testing.MockClock) -> None:
    """Served, refused at once, refused after waiting, timed out, left while waiting and while served."""
    bounds = limits(max_queue_depth=3, max_wait_s=20.0)
    models = [spec("a", slots=1), spec("bad")]
    scripts = {"a.gguf": "step_s=1", "bad.gguf": "fail_load=no_good"}
    async with running_scheduler(models, bounds, scripts) as here:
        async with trio.open_nursery() as nursery:
            served = here.ask("a", max_tokens=30)
            late = here.ask("a", max_tokens=30, timeout_s=10.0)
            waits = here.ask("a", max_tokens=30)
            leaves = here.ask("a", max_tokens=30)
            with pytest.raises(ModeldError):
                here.ask("a")
            for ticket in (served, late, waits):
                nursery.start_soon(read, ticket)
            await trio.sleep(1)
            leaves.close()
            failed = await last(here.ask("bad"))
            assert isinstance(failed, Failed)
        running = here.ask("a", max_tokens=30)
        while running.first_token is None:
            await trio.sleep(0.1)
        running.close()
        await here.scheduler.inside.wait_value(0)
        ends = [event for event in events_of(here) if event.kind in {EventKind.ENDED, EventKind.REFUSED}]
        found = {event.ticket: (event.kind.value, event.cause) for event in ends}
        assert len(ends) == len(found)
        assert found == {
            served.id: ("ended", "length"),
            late.id: ("refused", "deadline_exceeded"),
            waits.id: ("refused", "waited_too_long"),
            leaves.id: ("ended", "cancelled"),
            5: ("refused", "queue_full"),
            6: ("refused", "model_failed"),
            running.id: ("ended", "cancelled"),
        }
        full = next(event for event in ends if event.cause == "queue_full")
        assert full.numbers["status"] == 429
        assert full.numbers["retry_after_s"] >= 1
        assert "max_queue_depth is 3" in full.reason
        left = {event.ticket: event.reason for event in ends if event.cause == "cancelled"}
        assert left == {leaves.id: "its client left (queued)", running.id: "its client left (decode)"}


async def test_a_model_has_its_story(autojump_clock: trio.testing.MockClock) -> None:
    """Loading with progress, ready, evicted for another with the numbers, stopped, and only then the next."""
    models = [spec("a", 60), spec("b", 60)]
    async with running_scheduler(models, limits(100), {"a.gguf": "load_s=1", "b.gguf": "load_s=1"}) as here:
        await last(here.ask("a"))
        await last(here.ask("b"))
        told = [event for event in events_of(here) if event.ticket == 0 and "progress" not in event.numbers]
        assert [(event.kind.value, event.model) for event in told] == [
            ("loading", "a.gguf"),
            ("ready", "a.gguf"),
            ("evicting", "a.gguf"),
            ("stopped", "a.gguf"),
            ("loading", "b.gguf"),
            ("ready", "b.gguf"),
        ]
        evicting = told[2]
        assert (evicting.for_model, evicting.cause) == ("b.gguf", "room")
        assert evicting.numbers["frees_mb"] == 60
        assert "makes room for b.gguf; cheapest to lose" in evicting.reason
        progress = [
            event.numbers["progress"]
            for event in events_of(here)
            if event.model == "b.gguf" and "progress" in event.numbers
        ]
        assert progress == sorted(progress)
        assert (progress[0], progress[-1]) == (0.0, 1.0)


async def test_a_death_and_the_return_are_told(autojump_clock: trio.testing.MockClock) -> None:
    """The engine fails with its reason, and the model is restarted for those who had seen nothing."""
    scripts = {"a.gguf": "die_at=1"}
    async with running_scheduler([spec("a")], limits(100), scripts) as here:
        ticket = here.ask("a")
        while here.scheduler.fleet.instance("a.gguf").restarts == 0:
            await trio.sleep(0.1)
        scripts["a.gguf"] = ""
        assert isinstance(await last(ticket), Finished)
        told = [event for event in events_of(here) if event.ticket == 0 and "progress" not in event.numbers]
        assert [event.kind.value for event in told] == [
            "loading",
            "ready",
            "failed",
            "loading",
            "ready",
            "restarted",
        ]
        assert (told[2].cause, told[2].numbers["retry_in_s"]) == ("engine", 0.5)
        twice = ["granted", "started"] * 2
        assert story(here, ticket.id) == ["arrived", "queued", *twice, "ended"]


async def test_an_eviction_is_told_after_the_end_that_allowed_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Events are in the order of their causes: the last request of a model ends, then it goes."""
    models = [spec("a", 60, slots=1), spec("b", 60)]
    async with running_scheduler(models, limits(100, quantum_s=1.0), {"a.gguf": "step_s=1"}) as here:
        running = here.ask("a", max_tokens=8)
        other = here.ask("b")
        await last(running)
        await last(other)
        kinds = [event.kind for event in events_of(here) if event.model == "a.gguf"]
        assert (
            kinds.index(EventKind.DRAINING) < kinds.index(EventKind.ENDED) < kinds.index(EventKind.EVICTING)
        )


async def test_changes_of_position_are_told_at_a_limited_rate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Who comes hears his place at once; sixteen changes a second make at most two events a second."""
    async with running_scheduler(
        [spec("a", slots=1)], limits(max_queue_depth=400, max_queue_total=400)
    ) as here:
        here.scripts["a.gguf"] = "step_s=0.06"
        tickets = [here.ask("a", max_tokens=2) for _ in range(100)]
        heard: list[tuple[float, int]] = []

        async def listen() -> None:
            ended = False
            while not ended:
                for event in await tickets[-1].next():
                    if isinstance(event, Queued):
                        heard.append((trio.current_time(), event.position))
                    ended = isinstance(event, Finished | Failed)

        async with trio.open_nursery() as nursery:
            for ticket in tickets[:-1]:
                nursery.start_soon(read, ticket)
            began = trio.current_time()
            await listen()
            took = trio.current_time() - began
        tickets[-1].close()
        assert heard[0] == (began, 100)
        assert took > 5
        positions = [position for _, position in heard]
        assert positions == sorted(set(positions), reverse=True)
        times = [at for at, _ in heard[1:]]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert len(heard) > 5
        assert all(gap >= TELL_EVERY_S - 1e-6 for gap in gaps)
        assert all(gap <= 2 * TELL_EVERY_S + 0.05 for gap in gaps), "and each change is told in the end"


async def test_an_estimate_is_told_as_soon_as_there_is_one(autojump_clock: trio.testing.MockClock) -> None:
    """Who was told his place before anything was measured hears how long it takes, at the same place."""
    async with running_scheduler([spec("a", slots=2)], limits(), {"a.gguf": "step_s=1"}) as here:
        short, long = here.ask("a", max_tokens=3), here.ask("a", max_tokens=60)
        waiting = [here.ask("a", max_tokens=20) for _ in range(2)]
        async with trio.open_nursery() as nursery:
            for ticket in (short, long, waiting[0]):
                nursery.start_soon(read, ticket)
            events = await read(waiting[1])
            nursery.cancel_scope.cancel()
        queued = [event for event in events if isinstance(event, Queued)]
        assert queued[0].eta_s is None
        assert queued[-1].position == 1
        assert queued[-1].eta_s is not None


async def test_who_leaves_the_fifo_frees_his_place_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """While a long request keeps the only slot, places in front of it go to whoever comes."""
    async with running_scheduler([spec("a", slots=1)], limits(), {"a.gguf": "step_s=1"}) as here:
        running = here.ask("a", max_tokens=100)
        while running.first_token is None:
            await trio.sleep(0.1)
        for _ in range(10):
            in_fifo = here.ask("a")
            behind = here.ask("a")
            assert [lease.request.ticket for lease in here.scheduler.fleet.instance("a.gguf").leases] == [
                running.id,
                in_fifo.id,
            ]
            in_fifo.close()
            assert [lease.request.ticket for lease in here.scheduler.fleet.instance("a.gguf").leases] == [
                running.id,
                behind.id,
            ]
            behind.close()
        assert here.scheduler.inside.value == 1
        following = here.ask("a", max_tokens=1)
        running.close()
        assert isinstance(await last(following), Finished)


async def test_who_stays_in_the_fifo_keeps_his_turn(autojump_clock: trio.testing.MockClock) -> None:
    """One from the middle leaves, one is cut by its deadline: the others are served in their order."""
    async with running_scheduler([spec("a", slots=4)], limits(), {"a.gguf": "step_s=1"}) as here:
        running = [here.ask("a", max_tokens=20) for _ in range(4)]
        while any(ticket.first_token is None for ticket in running):
            await trio.sleep(0.1)
        fifo = [here.ask("a", max_tokens=4, timeout_s=3.0 if number == 2 else None) for number in range(4)]
        behind = here.ask("a", max_tokens=4)
        fifo[1].close()
        order: list[int] = []

        async def follow(ticket) -> None:
            await read(ticket)
            order.append(ticket.id)

        async with trio.open_nursery() as nursery:
            for ticket in (*running, fifo[0], *fifo[2:], behind):
                nursery.start_soon(follow, ticket)
            await trio.sleep(5)
            assert len(here.scheduler.fleet.instance("a.gguf").leases) == 4 + 3
            running[0].close()
            while fifo[0].admitted is None:
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        starts = [event.ticket for event in events_of(here) if event.kind is EventKind.STARTED]
        assert starts[4:] == [fifo[0].id]
        assert order[0] == fifo[2].id


async def test_a_class_is_served_in_order_of_arrival(autojump_clock: trio.testing.MockClock) -> None:
    """Through the whole runtime: of two requests of one class the earlier one has its slot first."""
    async with running_scheduler(
        [spec("a", slots=2)], limits(max_wait_s=1e6), {"a.gguf": "step_s=0.1"}
    ) as here:
        classes = [Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.NORMAL, Priority.LOW] * 4
        tickets = [
            here.ask("a", max_tokens=3 + number % 4, priority=one) for number, one in enumerate(classes)
        ]
        async with trio.open_nursery() as nursery:
            for ticket in tickets:
                nursery.start_soon(read, ticket)
        starts = [event.ticket for event in events_of(here) if event.kind is EventKind.STARTED]
        assert sorted(starts) == sorted(ticket.id for ticket in tickets)
        for priority in Priority:
            mine = [ticket.id for ticket in tickets if ticket.order.priority is priority]
            assert [ticket for ticket in starts if ticket in mine] == mine
        high = [ticket.id for ticket in tickets if ticket.order.priority is Priority.HIGH]
        low = [ticket.id for ticket in tickets if ticket.order.priority is Priority.LOW]
        assert max(map(starts.index, high)) < min(map(starts.index, low[2:])), "classes go before"
