# SPDX-License-Identifier: GPL-3.0-only
"""The set of victims that costs least, against all sets there are."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.scheduler.eviction import (
    EXACT_CANDIDATES,
    EvictionCandidate,
    cheapest_victims,
    choose_victims,
    eviction_cost_rate,
    greedy_victims,
)
from modeld.scheduler.state import REUSE_WINDOW_S, Eviction

costs = st.one_of(st.just(0.0), st.integers(1, 5).map(float), st.floats(0.0, 10.0, allow_subnormal=False))


@st.composite
def fleets(draw: st.DrawFn, most: int = 8) -> list[EvictionCandidate]:
    """Candidates with sizes, costs and last uses that often tie."""
    rows = draw(st.lists(st.tuples(st.integers(1, 12), costs, st.integers(0, 6)), min_size=1, max_size=most))
    return [
        EvictionCandidate(model_id=f"m{place:02}", frees=(frees,), cost=cost, last_used=float(used))
        for place, (frees, cost, used) in enumerate(rows)
    ]


def by_age(candidates: list[EvictionCandidate]) -> list[EvictionCandidate]:
    return sorted(candidates, key=lambda one: (one.last_used, one.model_id))


@given(fleets(), st.integers(1, 40))
@settings(max_examples=400, deadline=None)
def test_no_other_set_weighs_less(candidates: list[EvictionCandidate], missing: int) -> None:
    """Against brute force over all subsets: enough is freed, and nothing lighter would do."""
    chosen = choose_victims(candidates, (missing,))
    enough = [
        members
        for count in range(1, len(candidates) + 1)
        for members in combinations(candidates, count)
        if sum(one.frees[0] for one in members) >= missing
    ]
    if not enough:
        assert chosen is None
        return
    assert chosen is not None
    picked = [one for one in candidates if one.model_id in chosen]
    assert sum(one.frees[0] for one in picked) >= missing
    assert eviction_cost_rate(picked) == min(eviction_cost_rate(members) for members in enough)


@given(fleets(EXACT_CANDIDATES + 14), st.integers(1, 150))
@settings(max_examples=200, deadline=None)
def test_a_greedy_set_is_enough_and_needs_each_of_its_members(
    candidates: list[EvictionCandidate], missing: int
) -> None:
    """Beyond what is compared exactly, the set still frees enough, and without any member it would not."""
    if sum(one.frees[0] for one in candidates) < missing:
        assert choose_victims(candidates, (missing,)) is None
        return
    chosen = greedy_victims(by_age(candidates), (missing,))
    freed = sum(one.frees[0] for one in chosen)
    assert freed >= missing
    assert all(freed - one.frees[0] < missing for one in chosen)


@given(fleets(), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_lru_takes_the_longest_unused_until_it_is_enough(
    candidates: list[EvictionCandidate], missing: int
) -> None:
    """The policy of comparison looks at nothing else."""
    chosen = choose_victims(candidates, (missing,), Eviction.LRU)
    if chosen is None:
        assert sum(one.frees[0] for one in candidates) < missing
        return
    ordered = by_age(candidates)
    assert list(chosen) == [one.model_id for one in ordered[: len(chosen)]]
    assert sum(one.frees[0] for one in ordered[: len(chosen) - 1]) < missing


def test_sixteen_candidates_of_equal_weight_are_no_burden() -> None:
    """The worst case of the exact search: all cost and size the same, and half of them must go."""
    same = [
        EvictionCandidate(model_id=f"m{place:02}", frees=(1,), cost=1.0, last_used=float(place))
        for place in range(16)
    ]
    assert [one.model_id for one in cheapest_victims(same, (8,))] == [f"m{place:02}" for place in range(8)]


def test_the_model_with_the_lower_rate_goes_although_it_was_used_later() -> None:
    """One model is asked for all the time, b once and last: b goes, LRU would take a."""
    driver = SchedulerDriver([spec("a", 40), spec("b", 40), spec("c", 40)], limits(100))
    driver.up("a")
    for _ in range(20):
        driver.serve(driver.arrive("a"))
        driver.now += 1
    driver.up("b")
    driver.arrive("c")
    assert driver.stops == ["b.gguf"]


def test_a_slow_load_weighs_more_than_a_fast_one() -> None:
    """At equal rates the model that loads in a tenth of the time goes."""
    driver = SchedulerDriver([spec("a", 40), spec("b", 40), spec("c", 40)], limits(100))
    for name, seconds in (("a", 1.0), ("b", 10.0)):
        ticket = driver.arrive(name)
        driver.now += seconds
        driver.loaded(name)
        driver.serve(ticket)
    driver.serve(driver.arrive("a"))
    driver.serve(driver.arrive("b"))
    driver.arrive("c")
    assert driver.stops == ["a.gguf"]


def test_a_rate_decays_with_time() -> None:
    """Sixty requests weigh 1/e of what they did after one window; the rate is per second."""
    driver = SchedulerDriver([spec("a", slots=4)], limits(max_queue_depth=100))
    for _ in range(60):
        driver.arrive("a")
    view = driver.fleet.instance("a.gguf")
    assert view.reuse_rate(0.0) == pytest.approx(60 / REUSE_WINDOW_S)
    assert view.reuse_rate(REUSE_WINDOW_S) == pytest.approx(60 / REUSE_WINDOW_S / 2.718281828)
