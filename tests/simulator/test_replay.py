# SPDX-License-Identifier: GPL-3.0-only
"""Traces are replayed as the daemon would decide; the policy keeps what docs/scheduling.md promises."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import make

from modeld.domain.model import MIB
from modeld.domain.request import Priority
from modeld.scheduler.state import Eviction, SchedulerLimits
from modeld.simulator.belady import belady_loads, fewest_loads
from modeld.simulator.replay import SimulationReport, limits_of, simulate
from modeld.simulator.trace import BadTrace, Trace, TraceHead, TraceModel, TraceRequest, parse_trace

TRACES = Path(__file__).parent.parent / "traces"
NAMES = [trace.__name__ for trace in make.TRACES]
PATIENT = {"max_wait_s": 3600.0, "max_queue_depth": 10_000, "max_queue_total": 10_000}
"""Nobody is refused, so all waits are seen."""


@cache
def played(name: str, policy: Eviction) -> SimulationReport:
    trace = parse_trace((TRACES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    limits = SchedulerLimits(budget=round((trace.head.budget_mb or 0) * MIB), **PATIENT)
    return simulate(trace, limits_of(policy, limits))


def world(models: list[TraceModel], requests: list[TraceRequest]) -> Trace:
    return Trace(
        head=TraceHead(models=tuple(models)),
        requests=tuple(sorted(requests, key=lambda request: request.at_ms)),
    )


@pytest.mark.parametrize("trace", make.TRACES, ids=NAMES)
def test_the_traces_of_the_repository_are_what_their_program_writes(trace: object) -> None:
    """`tests/traces/make.py` and the files alongside it do not drift apart."""
    assert (TRACES / f"{trace.__name__}.jsonl").read_text(encoding="utf-8") == make.text(trace())


@pytest.mark.parametrize("name", NAMES)
def test_the_worst_wait_is_never_worse_than_with_lru(name: str) -> None:
    """On every trace of the repository, with nobody refused."""
    ours, lru = played(name, Eviction.COST), played(name, Eviction.LRU)
    assert ours.served == lru.served == ours.requests
    assert ours.waits.worst_ms <= lru.waits.worst_ms


@pytest.mark.parametrize(
    ("name", "saved"),
    [("hot_and_cold", 0.22), ("regulars_and_guests", 0.19), ("diurnal", 0.02), ("burst", 0.02)],
)
def test_the_mixed_traces_need_fewer_reloads_than_with_lru(name: str, saved: float) -> None:
    """As many as docs/scheduling.md says; where it saves little, at least it costs nothing."""
    ours, lru = played(name, Eviction.COST), played(name, Eviction.LRU)
    assert ours.reloads <= (1 - saved) * lru.reloads


@pytest.mark.parametrize("name", ["hot_and_cold", "regulars_and_guests", "diurnal", "burst", "alternating"])
def test_loads_stay_within_twice_those_of_a_server_that_knows_the_future(name: str) -> None:
    """Belady's rule over the arrivals, with the sizes as they are."""
    trace = parse_trace((TRACES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    uses = [request.model for request in trace.requests]
    sizes = {model.id: model.size_mb for model in trace.head.models}
    assert played(name, Eviction.COST).loads <= 2 * belady_loads(uses, sizes, trace.head.budget_mb)


def test_a_model_that_is_never_idle_does_not_keep_the_other_out() -> None:
    """With the daemon's own limits LRU serves none of the rare requests, ours all, within 15 s."""
    trace = parse_trace((TRACES / "starving.jsonl").read_text(encoding="utf-8").splitlines())
    limits = SchedulerLimits(budget=100 * MIB)
    assert simulate(trace, limits_of(Eviction.LRU, limits)).refused == {"waited_too_long": 7}
    ours = simulate(trace, limits_of(Eviction.COST, limits))
    assert ours.refused == {}
    assert ours.waits.worst_ms <= 15_000


def test_a_storm_over_three_models_with_room_for_one_is_served() -> None:
    """120 requests at once, 500 ms each: as many in 30 s as LRU serves, with as few loads."""
    models = [TraceModel(id=name, size_mb=60, load_ms=1000, slots=2) for name in "abc"]
    requests = [TraceRequest(at_ms=0, model="abc"[place % 3], service_ms=500) for place in range(120)]
    limits = SchedulerLimits(budget=100 * MIB, max_queue_depth=100)
    ours, lru = (simulate(world(models, requests), limits_of(policy, limits)) for policy in Eviction)
    assert ours.served >= lru.served >= 110
    assert ours.loads == lru.loads == 3


def test_the_same_trace_gives_the_same_report() -> None:
    """Nothing of the real clock or of chance is in it."""
    trace = parse_trace((TRACES / "burst.jsonl").read_text(encoding="utf-8").splitlines())
    limits = SchedulerLimits(budget=100 * MIB, **PATIENT)
    assert simulate(trace, limits) == simulate(trace, limits)


# --- the worst case ---------------------------------------------------------------------------------


def longest_wait_ms(trace: Trace, limits: SchedulerLimits) -> float:
    """The formula of docs/scheduling.md, "How long a request can wait", for requests of one class.

    It counts as older whatever is in the trace besides the request itself, so it holds for each of them.
    """
    service = max(trace.service_ms(request) for request in trace.requests)
    load = max(model.load_ms for model in trace.head.models)
    unload = max(model.unload_ms for model in trace.head.models)
    quantum, backlog = limits.quantum_s * 1000, limits.backlog_time_s * 1000
    turn = quantum + backlog + 2 * service + unload + load
    turns = 1
    for model in trace.head.models:
        requests = sum(request.model == model.id for request in trace.requests)
        per_turn = 2 * model.slots + model.slots * math.floor((quantum + backlog) / max(1, service))
        turns += math.ceil(requests / per_turn)
    return limits.max_wait_before_drain_s * 1000 + turns * turn + service + 10  # 10 ms: ticks are rounded up


@st.composite
def contended(draw: st.DrawFn) -> tuple[Trace, SchedulerLimits]:
    """A few models that do not fit together, and requests in a short time."""
    count = draw(st.integers(2, 4))
    models = [
        TraceModel(
            id="abcd"[place],
            size_mb=draw(st.sampled_from([30, 60, 90])),
            load_ms=draw(st.sampled_from([100, 1000, 4000])),
            unload_ms=draw(st.sampled_from([0, 300])),
            slots=draw(st.integers(1, 2)),
        )
        for place in range(count)
    ]
    rows = st.tuples(st.integers(0, 20_000), st.integers(0, count - 1), st.integers(1, 6000))
    requests = [
        TraceRequest(at_ms=at, model="abcd"[place], service_ms=service)
        for at, place, service in draw(st.lists(rows, min_size=2, max_size=40))
    ]
    limits = SchedulerLimits(
        budget=100 * MIB,
        max_wait_s=1e6,
        max_queue_depth=1000,
        max_wait_before_drain_s=draw(st.sampled_from([0.0, 2.0])),
        quantum_s=draw(st.sampled_from([0.0, 2.0])),
        backlog_time_s=draw(st.sampled_from([0.0, 3.0, 10.0])),
        min_residency_s=draw(st.sampled_from([0.0, 1.0])),
        evict_timeout_s=draw(st.sampled_from([1.0, 10.0])),
    )
    return world(models, requests), limits


@given(contended())
@settings(max_examples=300, deadline=None)
@pytest.mark.slow
def test_every_wait_is_within_the_formula(case: tuple[Trace, SchedulerLimits]) -> None:
    """Whatever comes, whenever: everybody is served, and nobody waits longer than the documentation says."""
    trace, limits = case
    report = simulate(trace, limits)
    assert report.served == len(trace.requests)
    assert report.waits.worst_ms <= longest_wait_ms(trace, limits)


@given(st.integers(1, 30), st.sampled_from([0.0, 2.0]))
@settings(max_examples=30, deadline=None)
@pytest.mark.slow
def test_a_stream_of_requests_for_others_never_lengthens_a_wait(clients: int, quantum: float) -> None:
    """One request for b among endless ones for a: it has its slot within a turn, however many those are."""
    models = [TraceModel(id=name, size_mb=60, load_ms=1000, slots=1) for name in "ab"]
    requests = [TraceRequest(at_ms=100 * place, model="a", service_ms=900) for place in range(20 * clients)]
    limits = SchedulerLimits(budget=100 * MIB, **PATIENT, quantum_s=quantum, backlog_time_s=5.0)
    report = simulate(world([*models], [*requests, TraceRequest(at_ms=500, model="b", service_ms=1)]), limits)
    alone = next(wait for wait in report.waits_by_model["b"])
    assert alone <= (2.0 + quantum + 5.0) * 1000 + 2 * 900 + 1000 + 900


# --- the optimum ------------------------------------------------------------------------------------


def brute_force(uses: list[str], capacity: int) -> int:
    """The fewest loads over all ways to choose who goes, with models of one size."""
    best = {frozenset[str](): 0}
    for use in uses:
        following: dict[frozenset[str], int] = {}
        for resident, loads in best.items():
            if use in resident:
                options = [(resident, loads)]
            elif len(resident) < capacity:
                options = [(resident | {use}, loads + 1)]
            else:
                options = [(resident - {victim} | {use}, loads + 1) for victim in resident]
            for state, cost in options:
                following[state] = min(following.get(state, cost), cost)
        best = following
    return min(best.values())


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=14), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_beladys_rule_is_the_optimum_for_models_of_one_size(uses: list[str], capacity: int) -> None:
    """Against brute force over every choice of victims; the lower bound is the same number then."""
    sizes = dict.fromkeys("abcde", 10.0)
    optimum = brute_force(uses, capacity)
    assert belady_loads(uses, sizes, 10.0 * capacity) == optimum
    assert fewest_loads(uses, sizes, 10.0 * capacity) == optimum


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=25), st.integers(5, 20))
@settings(max_examples=200, deadline=None)
def test_the_bound_is_never_above_what_the_rule_needs(uses: list[str], budget: int) -> None:
    """With models of different sizes the bound only bounds, and unlimited memory needs one load a model."""
    sizes = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}
    assert fewest_loads(uses, sizes, float(budget)) <= belady_loads(uses, sizes, float(budget))
    assert belady_loads(uses, sizes, None) == fewest_loads(uses, sizes, None) == len(set(uses))


# --- what a trace may contain -----------------------------------------------------------------------


def test_priorities_and_deadlines_of_a_trace_are_honoured() -> None:
    """A high request passes a normal one; one whose time is over is refused, and counts as such."""
    models = [TraceModel(id="a", size_mb=10, load_ms=0, slots=1)]
    requests = [
        *(TraceRequest(at_ms=0, model="a", service_ms=1000) for _ in range(3)),
        TraceRequest(at_ms=1, model="a", service_ms=1000, priority=Priority.HIGH),
        TraceRequest(at_ms=2, model="a", service_ms=1000, deadline_ms=500),
    ]
    report = simulate(world(models, requests), SchedulerLimits())
    assert report.served == 4
    assert report.refused == {"deadline_exceeded": 1}
    assert report.waits_by_model["a"] == (0, 500, 1000, 1999, 3000)


def test_tokens_take_the_time_of_their_model() -> None:
    """100 tokens of 30 ms hold the slot for 3 s."""
    lines = [
        '{"models": [{"id": "a", "size_mb": 1, "load_ms": 500, "token_ms": 30}]}',
        '{"at_ms": 10, "model": "a", "tokens": 100}',
    ]
    report = simulate(parse_trace(lines), SchedulerLimits())
    assert report.took_ms == 10 + 500 + 3000
    assert report.loading_ms == 500


BAD_LINES = {
    '{"at_ms": 1}': "line 2: Object missing required field `model`",
    '{"at_ms": 1, "model": "b", "service_ms": 1}': "line 2: model 'b' is not among the models",
    '{"at_ms": 1, "model": "a"}': "line 2: give either service_ms or tokens",
    '{"at_ms": 1, "model": "a", "service_ms": 1, "tokens": 1}': "line 2: give either",
    '{"at_ms": -1, "model": "a", "service_ms": 1}': "line 2: times and tokens cannot be negative",
    '{"at_ms": 1, "model": "a", "service_ms": 1, "colour": 1}': "line 2: Object contains unknown field",
    "nonsense": "line 2: JSON is malformed",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_request_is_named_by_its_line(line: str) -> None:
    """The message says which line, and what is wrong with it."""
    with pytest.raises(BadTrace, match=BAD_LINES[line]):
        parse_trace(['{"models": [{"id": "a", "size_mb": 1}]}', line])


BAD_HEADS = {
    "": "the trace is empty",
    "[]": "line 1: Expected `object`",
    '{"models": []}': "there are no models",
    '{"models": [{"id": "a", "size_mb": 0}]}': "needs a size_mb above 0",
    '{"models": [{"id": "a", "size_mb": 1, "slots": 0}]}': "slots from 1 on",
    '{"models": [{"id": "a", "size_mb": 1}, {"id": "a", "size_mb": 2}]}': "model 'a' is there twice",
    '{"models": [{"id": "a", "size_mb": 1}], "budget_mb": -1}': "is negative",
    '{"models": [{"id": "a", "size_mb": 1}]}': "the trace has no requests",
}


@pytest.mark.parametrize("head", BAD_HEADS)
def test_a_bad_head_is_explained(head: str) -> None:
    """Models must be there, once each, with sizes and slots that make sense."""
    with pytest.raises(BadTrace, match=BAD_HEADS[head]):
        parse_trace([head])


@pytest.mark.parametrize(("policy", "cut"), list(product(Eviction, [True, False])))
def test_streams_are_cut_only_where_that_is_allowed(policy: Eviction, cut: bool) -> None:
    """An hour-long stream keeps the other model out, or is cut after turn, backlog and evict_timeout."""
    models = [TraceModel(id=name, size_mb=60, load_ms=1000, slots=1) for name in "ab"]
    requests = [
        TraceRequest(at_ms=0, model="a", service_ms=3_600_000),
        TraceRequest(at_ms=10, model="b", service_ms=10),
    ]
    limits = SchedulerLimits(budget=100 * MIB, max_wait_s=60.0, cut_streams=cut)
    report = simulate(world(models, requests), limits_of(policy, limits))
    if policy is Eviction.COST and cut:
        assert report.refused == {"evicted": 1}
        assert report.waits.worst_ms <= (1 + 2 + 10 + 10 + 1) * 1000
    else:
        assert report.refused == {"waited_too_long": 1}
