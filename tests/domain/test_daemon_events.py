# SPDX-License-Identifier: GPL-3.0-only
"""The daemon's event as a value: which decision is which kind, its line, and its id."""

from __future__ import annotations

import json

import pytest
from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.daemon_events import EventKind, FleetEvent, Position, as_json, parse_position
from modeld.errors import EngineFailed
from modeld.scheduler.admission import BREAKER_FAILURES
from modeld.scheduler.effects import RecordDecision, kind_of
from modeld.scheduler.inputs import InstanceDied, SlotTaken, Tick

DEAD = EngineFailed("the engine broke").as_problem()


@pytest.mark.parametrize(
    ("tell", "found"),
    [
        (RecordDecision(action="load", model_id="a", reason=""), (EventKind.LOADING, "")),
        (RecordDecision(action="evict", model_id="a", reason="", kind="room"), (EventKind.EVICTING, "room")),
        (RecordDecision(action="unload", model_id="a", reason="", kind="ttl"), (EventKind.UNLOADING, "ttl")),
        (RecordDecision(action="load_failed", model_id="a", reason=""), (EventKind.FAILED, "load")),
        (RecordDecision(action="died", model_id="a", reason=""), (EventKind.FAILED, "engine")),
        (RecordDecision(action="stuck", model_id="a", reason=""), (EventKind.FAILED, "hang")),
        (
            RecordDecision(action="something_new", model_id="a", reason=""),
            (EventKind.DECIDED, "something_new"),
        ),
    ],
)
def test_each_decision_has_its_kind(tell: RecordDecision, found: tuple[EventKind, str]) -> None:
    """Those that events have no kind of their own for are shown all the same, by name."""
    assert kind_of(tell) == found


def test_a_line_has_only_the_keys_that_mean_something() -> None:
    """The first four are always there; it reads back as the same value."""
    event = FleetEvent(seq=3, run="r1", at_unix=1.5, uptime_ms=2.0, kind=EventKind.STOPPED, model="a.gguf")
    line = as_json(event)
    assert json.loads(line) == {
        "seq": 3, "run": "r1", "at_unix": 1.5, "uptime_ms": 2.0, "kind": "stopped", "model": "a.gguf",
    }  # fmt: skip
    assert parse_position(event.id) == Position("r1", 3)


@pytest.mark.parametrize(
    "text", ["", "17", "-17", "r-", "r-x", "r-1x", "a b-1", "r_1-2", "é-1", "r" * 70 + "-1"]
)
def test_what_is_no_id_is_told_how_one_looks(text: str) -> None:
    """Whatever a client sends as the last event it saw."""
    with pytest.raises(ValueError, match="they look like"):
        parse_position(text)


def test_the_breaker_is_told_when_it_opens_and_when_a_load_closes_it() -> None:
    """Five deaths open it once; the load after it closes it, and tells that the model is there again."""
    driver = SchedulerDriver([spec("a", slots=1)], limits(100))
    for _ in range(BREAKER_FAILURES):
        driver.now = max(driver.now + 1, driver.fleet.instance("a.gguf").failures.retry_at)
        ticket = driver.arrive("a")
        driver.loaded("a")
        driver.feed(SlotTaken(ticket))
        driver.feed(InstanceDied("a.gguf", DEAD))
    assert driver.decisions.count("breaker_opened") == 1
    assert "breaker_closed" not in driver.decisions
    opened = next(e for e in driver.of(RecordDecision) if e.action == "breaker_opened")
    assert opened.numbers == {"failures": 5, "retry_in_s": 30.0}
    assert opened.reason == (
        "5 failures within 60 s: its requests are refused for 30.0 s, then it is tried again"
    )
    driver.now += 30
    driver.feed(Tick())
    driver.arrive("a")
    driver.loaded("a")
    assert driver.decisions[-3:] == ["ready", "restarted", "breaker_closed"]
    assert "after 5 failures; the last one: the engine broke" in driver.of(RecordDecision)[-2].reason


def test_memory_that_came_back_is_told() -> None:
    """After an eviction: who went, for whom, and how much was freed."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 60)], limits(100))
    driver.up("a")
    driver.arrive("b")
    driver.stopped("a")
    told = {tell.action: tell for tell in driver.of(RecordDecision)}
    assert (told["evict"].for_model, told["evict"].kind) == ("b.gguf", "room")
    assert (told["stopped"].model_id, told["stopped"].numbers) == ("a.gguf", {"freed_mb": 60.0})
