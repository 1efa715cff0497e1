# SPDX-License-Identifier: GPL-3.0-only
"""Queues are bounded, ordered, and told: who is refused, with which numbers, and who comes next."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleets import Paper, limits, spec

from modeld.domain.request import Priority
from modeld.errors import Problem
from modeld.scheduler.effects import Refuse
from modeld.scheduler.eta import eta
from modeld.scheduler.inputs import GotSlot, Loaded, Released
from modeld.scheduler.queue_order import AGING_S, RANK, queue_order


def refusal(paper: Paper, ticket: int) -> Problem:
    return next(e.problem for e in paper.effects if isinstance(e, Refuse) and e.ticket == ticket)


def measured(paper: Paper, name: str, *, load_s: float, service_s: float) -> None:
    """Let a model be loaded once and serve one request, so both times are known."""
    ticket = paper.arrive(name)
    paper.now += load_s
    paper.loaded(name)
    paper.feed(GotSlot(ticket))
    paper.now += service_s
    paper.feed(Released(ticket, served=True))


def test_all_queues_together_are_bounded() -> None:
    """Six requests wait for three models; the next one that would wait is refused with both numbers."""
    paper = Paper([spec(name, 60, slots=1) for name in "abc"], limits(100, max_queue_total=6))
    for name in "abcabc":
        paper.arrive(name)
    refused = paper.arrive("a")
    assert paper.refusals == {refused: "queue_full"}
    assert refusal(paper, refused).details == {"queue_total": 6, "max_queue_total": 6}


def test_a_free_slot_needs_no_place_in_the_common_queue() -> None:
    """While others fill the queue, a model that is loaded and idle serves on."""
    paper = Paper([spec("a", 60), spec("b", 60)], limits(100, max_queue_total=1))
    paper.up("a")
    paper.feed(GotSlot(paper.arrive("a")))
    waiting = paper.arrive("b")
    at_once = paper.arrive("a")
    assert paper.refusals == {}
    assert at_once in paper.grants
    assert waiting not in paper.grants


@pytest.mark.parametrize(("slots", "expected"), [(1, 8), (4, 2)])
def test_the_time_to_retry_is_that_of_one_place(slots: int, expected: int) -> None:
    """8 s a request: a place comes free every 8 s with one slot, every 2 s with four."""
    paper = Paper([spec("a", slots=slots)], limits(max_queue_depth=2))
    measured(paper, "a", load_s=1.0, service_s=8.0)
    tickets = [paper.arrive("a") for _ in range(slots + 3)]
    assert paper.refusals == {tickets[-1]: "queue_full"}
    assert refusal(paper, tickets[-1]).retry_after_s == expected


def test_the_time_to_retry_knows_of_a_load_under_way() -> None:
    """Loads take 20 s, 5 of which are over, and a request takes 2 s: come back in 17 s."""
    paper = Paper([spec("a", slots=1, ttl_s=0.0)], limits(max_queue_depth=1))
    measured(paper, "a", load_s=20.0, service_s=2.0)
    paper.stopped("a")
    for _ in range(2):
        paper.arrive("a")
    paper.now += 5.0
    refused = paper.arrive("a")
    assert refusal(paper, refused).retry_after_s == 17


def test_the_common_queue_is_retried_by_the_rate_of_all_models() -> None:
    """Two models that each serve one request in 10 s give a place every 5 s."""
    paper = Paper([spec("a", slots=1), spec("b", slots=1)], limits(max_queue_total=2))
    for name in "ab":
        measured(paper, name, load_s=1.0, service_s=10.0)
    for name in "ab":
        paper.feed(GotSlot(paper.arrive(name)))
        paper.arrive(name)
    refused = paper.arrive("a")
    assert refusal(paper, refused).retry_after_s == 5


def test_the_estimate_counts_rounds_of_slots_and_the_load() -> None:
    """While it serves, the third of two slots waits two rounds; while it loads, the rest of it and one."""
    paper = Paper([spec("a", slots=2, ttl_s=0.0)], limits())
    assert eta(paper.fleet, "a.gguf", 1, 0.0) is None
    measured(paper, "a", load_s=4.0, service_s=3.0)
    paper.stopped("a")
    paper.arrive("a")
    assert [eta(paper.fleet, "a.gguf", place, paper.now + 1.0) for place in (1, 2, 3)] == [3.0, 3.0, 6.0]
    paper.now += 4.0
    paper.loaded("a")
    assert [eta(paper.fleet, "a.gguf", place, paper.now) for place in (1, 2, 3)] == [3.0, 3.0, 6.0]


def test_the_estimate_of_a_model_without_room_counts_the_turn_of_the_others() -> None:
    """B waits for a, which runs: 2 s until a may be asked, its 5 s of service, then b's load of 3 s."""
    paper = Paper([spec("a", 60, slots=1), spec("b", 60)], limits(100, quantum_s=0.0))
    measured(paper, "b", load_s=3.0, service_s=1.0)
    ticket = paper.arrive("a")
    paper.stopped("b")
    paper.loaded("a")
    paper.feed(GotSlot(ticket))
    paper.now += 5.0
    paper.feed(Released(ticket, served=True))
    paper.feed(GotSlot(paper.arrive("a")))
    paper.arrive("b")
    assert eta(paper.fleet, "b.gguf", 1, paper.now) == pytest.approx(2.0 + 5.0 + 3.0)


def test_a_deadline_within_the_load_is_refused_only_behind_the_first() -> None:
    """Loads take 20 s: the first request with 10 s starts one all the same, the second gets 503."""
    paper = Paper([spec("a", slots=2, ttl_s=0.0)], limits())
    measured(paper, "a", load_s=20.0, service_s=1.0)
    paper.stopped("a")
    first = paper.arrive("a", deadline=paper.now + 10.0)
    second = paper.arrive("a", deadline=paper.now + 10.0)
    patient = paper.arrive("a", deadline=paper.now + 21.0)
    assert paper.refusals == {second: "deadline_unreachable"}
    assert refusal(paper, second).details["eta_ms"] == 20_000
    assert {first, patient} <= {waiter.ticket for waiter in paper.fleet.waiting}


arrivals = st.lists(st.tuples(st.sampled_from(list(Priority)), st.floats(0.0, 8.0)), min_size=2, max_size=12)


@given(arrivals, st.floats(0.0, 60.0))
@settings(max_examples=300, deadline=None)
def test_within_a_class_the_order_is_that_of_arrival(
    plan: list[tuple[Priority, float]], later: float
) -> None:
    """However classes and ages mix, of two requests of one class the earlier one is served first."""
    paper = Paper([spec("a", slots=1)], limits(max_wait_s=1e6))
    classes: dict[int, Priority] = {}
    for priority, pause in plan:
        paper.now += pause
        classes[paper.arrive("a", priority=priority)] = priority
    paper.now += later
    order = queue_order(paper.fleet, "a.gguf", paper.now)
    for priority in Priority:
        mine = [ticket for ticket in order if classes[ticket] is priority]
        assert mine == sorted(mine)


@given(arrivals)
@settings(max_examples=300, deadline=None)
def test_nobody_is_passed_by_who_came_much_later(plan: list[tuple[Priority, float]]) -> None:
    """A low request is passed only by high ones of the next 20 s, a normal one by those of 10 s."""
    paper = Paper([spec("a", slots=1)], limits(max_wait_s=1e6))
    came: dict[int, tuple[int, float]] = {}
    for priority, pause in plan:
        paper.now += pause
        came[paper.arrive("a", priority=priority)] = (RANK[priority], paper.now)
    order = queue_order(paper.fleet, "a.gguf", paper.now)
    for place, ticket in enumerate(order):
        rank, since = came[ticket]
        for other in order[:place]:
            other_rank, other_since = came[other]
            assert other_since <= since + AGING_S * max(0, rank - other_rank)


def test_a_cold_model_with_slots_of_its_own_counts_them_from_its_file() -> None:
    """Loaded with fewer slots than asked for, the bound follows what there is."""
    paper = Paper([spec("a", slots=4)], limits(max_queue_depth=1))
    for _ in range(5):
        paper.arrive("a")
    paper.feed(Loaded("a.gguf", 1))
    assert paper.refusals == {}
    assert paper.arrive("a") in paper.refusals
