# SPDX-License-Identifier: GPL-3.0-only
"""What a daemon recorded is a trace: the simulator plays the same requests, and comes to the same end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
from click.testing import CliRunner
from support.scheduler_driver import limits, spec
from support.scheduler_harness import SchedulerHarness, read, running_scheduler

from modeld.cli.main import modeld
from modeld.domain.daemon_events import EventKind, FleetEvent, as_json
from modeld.domain.model import MIB
from modeld.domain.request import Priority
from modeld.scheduler.state import SchedulerLimits
from modeld.simulator.replay import simulate
from modeld.simulator.trace import BadTrace, parse_head
from modeld.simulator.trace_from_events import ASSUMED_SERVICE_MS, is_recorded, parse_events

BOUNDS = limits(100, max_wait_s=1000.0)
# Seconds, model, tokens (a second each after the first), class.
ARRIVALS = (
    (0.0, "a", 3, Priority.NORMAL),
    (0.5, "b", 2, Priority.HIGH),
    (1.25, "a", 4, Priority.LOW),
    (9.0, "a", 6, Priority.NORMAL),
    (9.001, "c", 5, Priority.NORMAL),
    (20.0, "b", 2, Priority.NORMAL),
)


def lines_of(here: SchedulerHarness) -> list[str]:
    log = here.observer.events
    return [as_json(event).decode() for event in log.between(log.first_kept, log.last + 1)]


async def recorded(play: Callable[[SchedulerHarness, trio.Nursery], object]) -> list[str]:
    """Let requests come, and return what was told of them."""
    models = [spec("a", 60, slots=1), spec("b", 70, slots=2), spec("c", 30, slots=1)]
    scripts = dict.fromkeys(("a.gguf", "b.gguf", "c.gguf"), "load_s=2 step_s=1")
    async with running_scheduler(models, BOUNDS, scripts) as here:
        async with trio.open_nursery() as nursery:
            await play(here, nursery)
        return lines_of(here)


async def arrivals(here: SchedulerHarness, nursery: trio.Nursery) -> None:
    began = trio.current_time()
    for at, model, tokens, priority in ARRIVALS:
        await trio.sleep_until(began + at)
        nursery.start_soon(read, here.ask(model, max_tokens=tokens, priority=priority))


async def test_a_recorded_run_replays(autojump_clock: trio.testing.MockClock) -> None:
    """Arrivals, classes, services, sizes, loads and slots come back; so do the loads and the waits."""
    lines = await recorded(arrivals)
    trace = parse_events(lines)
    found = [(one.at_ms / 1000, one.model, one.service_ms, one.priority) for one in trace.requests]
    assert found == [
        (at, f"{model}.gguf", 1000 * (tokens - 1), priority) for at, model, tokens, priority in ARRIVALS
    ]
    models = {one.id: (one.size_mb, one.slots, one.load_ms, one.unload_ms) for one in trace.head.models}
    assert models == {"a.gguf": (60, 1, 2000, 0), "b.gguf": (70, 2, 2000, 0), "c.gguf": (30, 1, 2000, 0)}
    assert (trace.head.budget_mb, trace.missed) == (100, 0)
    report = simulate(trace, BOUNDS)
    events = [msgspec.json.decode(line, type=FleetEvent) for line in lines]
    assert report.served == len(ARRIVALS)
    assert report.loads == sum(event.kind is EventKind.READY for event in events)
    came = {event.ticket: event.uptime_ms for event in events if event.kind is EventKind.ARRIVED}
    waits = sorted(
        event.uptime_ms - came[event.ticket] for event in events if event.kind is EventKind.STARTED
    )
    replayed = sorted(wait for of_model in report.waits_by_model.values() for wait in of_model)
    # The engine of the house takes a new request between two of its steps, the simulator at once.
    assert replayed == pytest.approx(waits, abs=1100)


async def test_who_was_never_served_is_replayed_with_the_usual_service(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One leaves while it waits, one is refused: both are there, with their model's median, or a guess."""

    async def play(here: SchedulerHarness, nursery: trio.Nursery) -> None:
        nursery.start_soon(read, here.ask("a", max_tokens=8))
        await trio.sleep(3)
        leaves = here.ask("a", max_tokens=50)
        nursery.start_soon(read, here.ask("b", timeout_s=1.0))
        await trio.sleep(0.5)
        leaves.close()

    trace = parse_events(await recorded(play))
    assert [(one.model, one.service_ms) for one in trace.requests] == [
        ("a.gguf", 7000),
        ("a.gguf", 7000),
        ("b.gguf", ASSUMED_SERVICE_MS),
    ]
    assert trace.requests[2].deadline_ms == 1000


def event(seq: int, kind: EventKind, at_s: float, run: str = "r1", **more: object) -> str:
    began = {"r1": 1000.0, "r2": 1100.0}[run]
    told = FleetEvent(seq=seq, run=run, at_unix=began + at_s, uptime_ms=1000 * at_s, kind=kind, **more)
    return as_json(told).decode()


def test_several_runs_and_gaps_are_one_trace() -> None:
    """Times go on over a restart, numbers of requests begin again, and what was missed is counted."""
    lines = [
        event(1, EventKind.ARRIVED, 1.0, model="a", ticket=1, numbers={"need_mb": 50, "slots": 4}),
        event(2, EventKind.ARRIVED, 1.5, model="a", ticket=2, cause="aside"),
        "",
        event(9, EventKind.MISSED, 2.0, numbers={"events": 7}),
        event(1, EventKind.ARRIVED, 3.0, run="r2", model="b", ticket=1, numbers={"need_mb": 1024}),
        event(2, EventKind.ENDED, 4.0, run="r2", model="b", ticket=1, numbers={"slot_ms": 400.0}),
    ]
    trace = parse_events(lines)
    assert [(one.at_ms, one.model, one.service_ms) for one in trace.requests] == [
        (0, "a", ASSUMED_SERVICE_MS),
        (102_000, "b", 400),
    ]
    assert trace.missed == 7
    assert [(one.id, one.size_mb, one.slots, one.load_ms) for one in trace.head.models] == [
        ("a", 50, 4, 49),
        ("b", 1024, 1, 1000),
    ]


def test_what_is_no_trace_is_told_with_its_line() -> None:
    """A broken line, no request at all, and models that do not belong."""
    arrived = event(1, EventKind.ARRIVED, 1.0, model="a", ticket=1, numbers={"need_mb": 50})
    with pytest.raises(BadTrace, match=r"line 2: .*an event is expected here"):
        parse_events([arrived, '{"seq":1'])
    with pytest.raises(BadTrace, match="there is no request among these events"):
        parse_events([event(1, EventKind.READY, 1.0, model="a", numbers={"load_s": 1.0})])
    head = parse_head('{"models":[{"id":"b","size_mb":1}]}', "here")
    with pytest.raises(BadTrace, match="model 'a' of the events is not among the models given"):
        parse_events([arrived], head)
    assert is_recorded(arrived)
    assert not is_recorded('{"models":[]}')
    assert not is_recorded("{")


def test_the_command_takes_a_file_of_events(tmp_path: Path) -> None:
    """It is told apart by its first line; events that were lost are said."""
    file = tmp_path / "events.ndjson"
    lines = [
        "",
        event(1, EventKind.DAEMON_STARTED, 0.0, numbers={"budget_mb": 100, "margin_mb": 0}),
        event(2, EventKind.ARRIVED, 1.0, model="a", ticket=1, numbers={"need_mb": 50, "slots": 4}),
        event(5, EventKind.MISSED, 2.0, numbers={"events": 3}),
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    result = CliRunner().invoke(modeld, ["simulate", str(file)])
    assert result.exit_code == 0, result.output
    assert "1 requests over 0.0 min for 1 models, 100 MiB" in result.output
    assert "3 events were lost while this was recorded, so requests are missing" in result.output


def test_the_budget_of_the_record_holds() -> None:
    """Unless there was none."""
    arrived = event(2, EventKind.ARRIVED, 1.0, model="a", ticket=1, numbers={"need_mb": 50})
    for budget, found in ((80, 80), (0, None)):
        started = event(1, EventKind.DAEMON_STARTED, 0.0, numbers={"budget_mb": budget})
        assert parse_events([started, arrived]).head.budget_mb == found
    assert simulate(parse_events([arrived]), SchedulerLimits(budget=10 * MIB)).refused == {"does_not_fit": 1}
