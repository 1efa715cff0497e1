# SPDX-License-Identifier: GPL-3.0-only
"""Queues are bounded, ordered, and told: who is refused, with which numbers, and who comes next."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.request import Priority
from modeld.errors import Problem
from modeld.scheduler.effects import Refuse
from modeld.scheduler.eta import eta
from modeld.scheduler.inputs import InstanceLoaded, SlotReleased, SlotTaken
from modeld.scheduler.queue_order import AGING_S, RANK, queue_order


def refusal(driver: SchedulerDriver, ticket: int) -> Problem:
    return next(e.problem for e in driver.effects if isinstance(e, Refuse) and e.ticket == ticket)


def measured(driver: SchedulerDriver, name: str, *, load_s: float, service_s: float) -> None:
    """Let a model be loaded once and serve one request, so both times are known."""
    ticket = driver.arrive(name)
    driver.now += load_s
    driver.loaded(name)
    driver.feed(SlotTaken(ticket))
    driver.now += service_s
    driver.feed(SlotReleased(ticket, served=True))


def test_all_queues_together_are_bounded() -> None:
    """Six requests wait for three models; the next one that would wait is refused with both numbers."""
    driver = SchedulerDriver([spec(name, 60, slots=1) for name in "abc"], limits(100, max_queue_total=6))
    for name in "abcabc":
        driver.arrive(name)
    refused = driver.arrive("a")
    assert driver.refusals == {refused: "queue_full"}
    assert refusal(driver, refused).details == {"queue_total": 6, "max_queue_total": 6}


def test_a_free_slot_needs_no_place_in_the_common_queue() -> None:
    """While others fill the queue, a model that is loaded and idle serves on."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 60)], limits(100, max_queue_total=1))
    driver.up("a")
    driver.feed(SlotTaken(driver.arrive("a")))
    waiting = driver.arrive("b")
    at_once = driver.arrive("a")
    assert driver.refusals == {}
    assert at_once in driver.grants
    assert waiting not in driver.grants


@pytest.mark.parametrize(("slots", "expected"), [(1, 8), (4, 2)])
def test_the_time_to_retry_is_that_of_one_place(slots: int, expected: int) -> None:
    """8 s a request: a place comes free every 8 s with one slot, every 2 s with four."""
    driver = SchedulerDriver([spec("a", slots=slots)], limits(max_queue_depth=2))
    measured(driver, "a", load_s=1.0, service_s=8.0)
    tickets = [driver.arrive("a") for _ in range(slots + 3)]
    assert driver.refusals == {tickets[-1]: "queue_full"}
    assert refusal(driver, tickets[-1]).retry_after_s == expected


def test_the_time_to_retry_knows_of_a_load_under_way() -> None:
    """Loads take 20 s, 5 of which are over, and a request takes 2 s: come back in 17 s."""
    driver = SchedulerDriver([spec("a", slots=1, ttl_s=0.0)], limits(max_queue_depth=1))
    measured(driver, "a", load_s=20.0, service_s=2.0)
    driver.stopped("a")
    for _ in range(2):
        driver.arrive("a")
    driver.now += 5.0
    refused = driver.arrive("a")
    assert refusal(driver, refused).retry_after_s == 17


def test_the_common_queue_is_retried_by_the_rate_of_all_models() -> None:
    """Two models that each serve one request in 10 s give a place every 5 s."""
    driver = SchedulerDriver([spec("a", slots=1), spec("b", slots=1)], limits(max_queue_total=2))
    for name in "ab":
        measured(driver, name, load_s=1.0, service_s=10.0)
    for name in "ab":
        driver.feed(SlotTaken(driver.arrive(name)))
        driver.arrive(name)
    refused = driver.arrive("a")
    assert refusal(driver, refused).retry_after_s == 5


def test_the_estimate_counts_rounds_of_slots_and_the_load() -> None:
    """While it serves, the third of two slots waits two rounds; while it loads, the rest of it and one."""
    driver = SchedulerDriver([spec("a", slots=2, ttl_s=0.0)], limits())
    assert eta(driver.fleet, "a.gguf", 1, 0.0) is None
    measured(driver, "a", load_s=4.0, service_s=3.0)
    driver.stopped("a")
    driver.arrive("a")
    assert [eta(driver.fleet, "a.gguf", place, driver.now + 1.0) for place in (1, 2, 3)] == [3.0, 3.0, 6.0]
    driver.now += 4.0
    driver.loaded("a")
    assert [eta(driver.fleet, "a.gguf", place, driver.now) for place in (1, 2, 3)] == [3.0, 3.0, 6.0]


def test_the_estimate_of_a_model_without_room_counts_the_turn_of_the_others() -> None:
    """B waits for a, which runs: 2 s until a may be asked, its 5 s of service, then b's load of 3 s."""
    driver = SchedulerDriver([spec("a", 60, slots=1), spec("b", 60)], limits(100, quantum_s=0.0))
    measured(driver, "b", load_s=3.0, service_s=1.0)
    ticket = driver.arrive("a")
    driver.stopped("b")
    driver.loaded("a")
    driver.feed(SlotTaken(ticket))
    driver.now += 5.0
    driver.feed(SlotReleased(ticket, served=True))
    driver.feed(SlotTaken(driver.arrive("a")))
    driver.arrive("b")
    assert eta(driver.fleet, "b.gguf", 1, driver.now) == pytest.approx(2.0 + 5.0 + 3.0)


def test_a_deadline_within_the_load_is_refused_only_behind_the_first() -> None:
    """Loads take 20 s: the first request with 10 s starts one all the same, the second gets 503."""
    driver = SchedulerDriver([spec("a", slots=2, ttl_s=0.0)], limits())
    measured(driver, "a", load_s=20.0, service_s=1.0)
    driver.stopped("a")
    first = driver.arrive("a", deadline=driver.now + 10.0)
    second = driver.arrive("a", deadline=driver.now + 10.0)
    patient = driver.arrive("a", deadline=driver.now + 21.0)
    assert driver.refusals == {second: "deadline_unreachable"}
    assert refusal(driver, second).details["eta_ms"] == 20_000
    assert {first, patient} <= {waiter.ticket for waiter in driver.fleet.waiting}


arrivals = st.lists(st.tuples(st.sampled_from(list(Priority)), st.floats(0.0, 8.0)), min_size=2, max_size=12)


@given(arrivals, st.floats(0.0, 60.0))
@settings(max_examples=300, deadline=None)
def test_within_a_class_the_order_is_that_of_arrival(
    plan: list[tuple[Priority, float]], later: float
) -> None:
    """However classes and ages mix, of two requests of one class the earlier one is served first."""
    driver = SchedulerDriver([spec("a", slots=1)], limits(max_wait_s=1e6))
    classes: dict[int, Priority] = {}
    for priority, pause in plan:
        driver.now += pause
        classes[driver.arrive("a", priority=priority)] = priority
    driver.now += later
    order = queue_order(driver.fleet, "a.gguf", driver.now)
    for priority in Priority:
        mine = [ticket for ticket in order if classes[ticket] is priority]
        assert mine == sorted(mine)


@given(arrivals)
@settings(max_examples=300, deadline=None)
def test_nobody_is_passed_by_who_came_much_later(plan: list[tuple[Priority, float]]) -> None:
    """A low request is passed only by high ones of the next 20 s, a normal one by those of 10 s."""
    driver = SchedulerDriver([spec("a", slots=1)], limits(max_wait_s=1e6))
    came: dict[int, tuple[int, float]] = {}
    for priority, pause in plan:
        driver.now += pause
        came[driver.arrive("a", priority=priority)] = (RANK[priority], driver.now)
    order = queue_order(driver.fleet, "a.gguf", driver.now)
    for place, ticket in enumerate(order):
        rank, since = came[ticket]
        for other in order[:place]:
            other_rank, other_since = came[other]
            assert other_since <= since + AGING_S * max(0, rank - other_rank)


def test_a_cold_model_with_slots_of_its_own_counts_them_from_its_file() -> None:
    """Loaded with fewer slots than asked for, the bound follows what there is."""
    driver = SchedulerDriver([spec("a", slots=4)], limits(max_queue_depth=1))
    for _ in range(5):
        driver.arrive("a")
    driver.feed(InstanceLoaded("a.gguf", 1))
    assert driver.refusals == {}
    assert driver.arrive("a") in driver.refusals
