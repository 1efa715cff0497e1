# SPDX-License-Identifier: GPL-3.0-only
"""The scheduler's decisions, on paper: no clock, no thread, no server."""

from __future__ import annotations

import math

import pytest
from support.fleets import Paper, limits, spec

from modeld.domain.instance_state import State, move
from modeld.domain.model import MIB, make_catalog
from modeld.domain.request import Priority
from modeld.errors import EngineFailed, ModelFailed
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import Load, Refuse, Tell
from modeld.scheduler.inputs import (
    CatalogChanged,
    CutAll,
    Died,
    Drain,
    GotSlot,
    Left,
    LoadFailed,
    Released,
    Stuck,
    Tick,
    Wanted,
)
from modeld.scheduler.queue_order import queue_order

BROKEN = ModelFailed("the file ends too early").as_problem()
DEAD = EngineFailed("the engine broke").as_problem()


def test_waiters_for_one_model_share_one_load() -> None:
    """Three requests for a cold model start one load, and all three are granted when it is ready."""
    paper = Paper([spec("a", slots=4)], limits())
    tickets = [paper.arrive("a") for _ in range(3)]
    assert paper.loads == ["a.gguf"]
    paper.loaded("a")
    assert paper.grants == tickets


def test_ready_and_the_grants_are_one_move() -> None:
    """A model that was just loaded has its waiters' leases at once, so it is no victim before them."""
    paper = Paper([spec("a", 60), spec("b", 60)], limits(100))
    paper.arrive("a")
    paper.arrive("b")
    paper.loaded("a")
    assert paper.state("a") is State.READY
    assert not paper.fleet.instance("a.gguf").idle
    assert paper.stops == []


def test_a_fifo_takes_one_round_of_slots_beyond_those_that_run() -> None:
    """Of ten waiters for two slots, four are granted; the rest stay with the scheduler."""
    paper = Paper([spec("a", slots=2)], limits())
    tickets = [paper.arrive("a") for _ in range(10)]
    paper.loaded("a")
    assert paper.grants == tickets[:4]
    paper.serve(tickets[0])
    assert paper.grants == tickets[:5]


def test_what_exceeds_the_budget_is_refused_at_once_and_evicts_nothing() -> None:
    """A model larger than the budget gets 507 with its numbers, and the loaded model stays."""
    paper = Paper([spec("a", 60), spec("big", 200)], limits(100))
    paper.up("a")
    ticket = paper.arrive("big")
    refusal = next(effect for effect in paper.effects if isinstance(effect, Refuse))
    assert paper.refusals == {ticket: "does_not_fit"}
    assert refusal.problem.details["need_mb"] == 200
    assert refusal.problem.details["budget_mb"] == 100
    assert paper.state("a") is State.READY


def test_a_model_that_fits_only_without_the_pinned_ones_is_refused() -> None:
    """Pinned models never go, so what cannot fit beside them cannot fit."""
    paper = Paper([spec("a", 60, pinned=True), spec("b", 60)], limits(100))
    paper.up("a")
    refused = paper.arrive("b")
    assert paper.refusals == {refused: "does_not_fit"}


def test_the_margin_is_never_used() -> None:
    """Budget less margin is what models may take."""
    paper = Paper([spec("a", 60), spec("b", 40)], limits(100, margin=1 * MIB))
    paper.up("a")
    paper.arrive("b")
    assert paper.state("b") is State.QUEUED
    assert paper.stops == ["a.gguf"]


def test_the_least_recently_used_idle_model_goes() -> None:
    """Of two idle models, the one that was used longer ago makes room."""
    paper = Paper([spec("a", 40), spec("b", 40), spec("c", 40)], limits(100))
    paper.up("a", "b")
    paper.serve(paper.arrive("a"))
    paper.arrive("c")
    assert paper.stops == ["b.gguf"]


def test_the_next_load_waits_until_the_memory_was_given_back() -> None:
    """A victim's bytes count as free only when it has stopped."""
    paper = Paper([spec("a", 60), spec("b", 60)], limits(100))
    paper.up("a")
    paper.arrive("b")
    assert paper.loads == ["a.gguf"]
    assert paper.state("b") is State.QUEUED
    paper.stopped("a")
    assert paper.loads == ["a.gguf", "b.gguf"]


def test_a_busy_model_is_never_a_victim() -> None:
    """A model with a lease stays, however long another waits."""
    paper = Paper([spec("a", 60), spec("b", 60)], limits(100))
    ticket = paper.arrive("a")
    paper.loaded("a")
    paper.feed(GotSlot(ticket))
    paper.arrive("b")
    paper.now = 29.0
    paper.feed(Tick())
    assert paper.state("a") is State.READY
    paper.feed(Released(ticket, served=True))
    assert paper.stops == ["a.gguf"]


def test_a_loading_model_is_no_victim() -> None:
    """What is on its way in is not thrown out."""
    paper = Paper([spec("a", 60), spec("b", 60)], limits(100))
    paper.arrive("a")
    paper.arrive("b")
    assert paper.stops == []
    assert paper.state("b") is State.QUEUED


def test_two_loads_at_once_do_not_count_the_same_bytes() -> None:
    """A reservation is made when a load starts, so the second of two sees what is left."""
    paper = Paper([spec("a", 60), spec("b", 60), spec("c", 30)], limits(100))
    for name in "abc":
        paper.arrive(name)
    assert paper.loads == ["a.gguf", "c.gguf"]
    assert paper.fleet.held == 90 * MIB


def test_nothing_is_evicted_when_all_victims_together_are_not_enough() -> None:
    """An eviction that cannot help is not made."""
    paper = Paper([spec("a", 30), spec("b", 60), spec("c", 80)], limits(100))
    paper.up("a")
    ticket = paper.arrive("b")
    paper.loaded("b")
    paper.feed(GotSlot(ticket))
    paper.arrive("c")
    assert paper.stops == []


def test_a_pinned_model_is_never_a_victim() -> None:
    """Whoever needs room, pinned models stay; the idle other one goes."""
    paper = Paper([spec("a", 40, pinned=True), spec("b", 40), spec("c", 40)], limits(100))
    paper.up("a", "b")
    paper.arrive("c")
    assert paper.stops == ["b.gguf"]


def test_a_full_queue_refuses_with_a_time_to_retry() -> None:
    """Slots plus max_queue_depth requests are inside; the next one gets 429 and Retry-After."""
    paper = Paper([spec("a", slots=2)], limits(max_queue_depth=3))
    inside = [paper.arrive("a") for _ in range(5)]
    refused = paper.arrive("a")
    assert paper.refusals == {refused: "queue_full"}
    problem = next(effect.problem for effect in paper.effects if isinstance(effect, Refuse))
    assert problem.retry_after_s is not None
    assert problem.retry_after_s >= 1
    paper.feed(Left(inside[4]))
    assert paper.arrive("a") not in paper.refusals


def test_a_model_may_have_its_own_queue_depth() -> None:
    """The catalogue's depth goes before the daemon's."""
    paper = Paper([spec("a", slots=1, max_queue_depth=0)], limits())
    paper.arrive("a")
    refused = paper.arrive("a")
    assert paper.refusals == {refused: "queue_full"}


def test_waiting_too_long_for_a_slot_is_refused_with_429() -> None:
    """After max_wait without a slot, waiters and those in the FIFO are told to come back."""
    paper = Paper([spec("a", slots=1)], limits(max_wait_s=30.0))
    tickets = [paper.arrive("a") for _ in range(3)]
    paper.loaded("a")
    paper.feed(GotSlot(tickets[0]))
    assert next_deadline(paper.fleet, paper.now) == 30.0
    paper.now = 30.0
    paper.feed(Tick())
    assert paper.cuts == {tickets[1]: "waited"}
    assert paper.refusals == {tickets[2]: "waited_too_long"}


def test_the_time_of_its_own_load_does_not_count_as_waiting() -> None:
    """A load of two minutes does not time its waiters out; max_wait starts when the model is ready."""
    paper = Paper([spec("a", slots=1)], limits(max_wait_s=30.0))
    tickets = [paper.arrive("a") for _ in range(3)]
    paper.now = 120.0
    paper.feed(Tick())
    assert paper.refusals == {}
    paper.loaded("a")
    paper.feed(GotSlot(tickets[0]))
    paper.now = 149.0
    paper.feed(Tick())
    assert paper.cuts == {}
    paper.now = 150.0
    paper.feed(Tick())
    assert set(paper.cuts) | set(paper.refusals) == set(tickets[1:])


@pytest.mark.parametrize("phase", ["queued", "loading", "slot"])
def test_a_deadline_ends_a_request_in_every_phase(phase: str) -> None:
    """Time over: refused while it waits, cut when it has a lease."""
    paper = Paper([spec("a", 60), spec("b", 60)], limits(100))
    if phase == "queued":
        paper.arrive("b")
    ticket = paper.arrive("a", deadline=5.0)
    if phase == "slot":
        paper.loaded("a")
        paper.feed(GotSlot(ticket))
    assert next_deadline(paper.fleet, 3.0) == 5.0
    paper.now = 5.0
    paper.feed(Tick())
    if phase == "slot":
        assert paper.cuts == {ticket: "timeout"}
    else:
        assert paper.refusals == {ticket: "deadline_exceeded"}


def test_the_operators_infer_timeout_bounds_the_clients() -> None:
    """A client may ask for less time than infer_timeout, not for more."""
    paper = Paper([spec("a")], limits(infer_timeout_s=10.0))
    paper.arrive("a", deadline=100.0)
    paper.arrive("a", deadline=3.0)
    paper.arrive("a")
    assert [waiter.deadline for waiter in paper.fleet.waiting] == [10.0, 3.0, 10.0]


def test_a_failed_load_refuses_its_waiters_and_backs_off() -> None:
    """Waiters get 503 with Retry-After, arrivals too until the backoff is over, then it is tried again."""
    paper = Paper([spec("a")], limits())
    first = paper.arrive("a")
    paper.feed(LoadFailed("a.gguf", BROKEN))
    assert paper.state("a") is State.ERROR
    assert paper.fleet.held == 0
    second = paper.arrive("a")
    assert paper.refusals == {first: "model_failed", second: "model_failed"}
    paper.now = 0.5
    paper.arrive("a")
    assert paper.loads == ["a.gguf", "a.gguf"]


def test_the_backoff_doubles_up_to_five_minutes() -> None:
    """0.5 s, 1 s, 2 s, ... and never more than 300 s between two tries."""
    paper = Paper([spec("a")], limits())
    waits = []
    for _ in range(15):
        paper.arrive("a")
        paper.feed(LoadFailed("a.gguf", BROKEN))
        waits.append(paper.fleet.instance("a.gguf").failures.retry_at - paper.now)
        paper.now += waits[-1]
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert waits[4] == 30.0  # the breaker: five failures within a minute
    assert max(waits) == waits[-1] == 300.0


def test_nothing_is_evicted_for_a_model_that_backs_off() -> None:
    """A request for a failing model is refused before anybody has to go."""
    paper = Paper([spec("a", 60), spec("b", 60)], limits(100))
    paper.arrive("b")
    paper.feed(LoadFailed("b.gguf", BROKEN))
    paper.up("a")
    paper.now = paper.fleet.instance("b.gguf").failures.retry_at - 0.1
    paper.arrive("b")
    assert paper.stops == []


def test_after_a_death_those_without_a_slot_wait_for_the_restart() -> None:
    """What was in a slot is lost; what had not begun is served by the next engine."""
    paper = Paper([spec("a", slots=1)], limits())
    running, queued, behind = (paper.arrive("a") for _ in range(3))
    paper.loaded("a")
    paper.feed(GotSlot(running))
    paper.feed(Died("a.gguf", DEAD))
    assert [waiter.ticket for waiter in paper.fleet.waiting] == [queued, behind]
    assert paper.loads == ["a.gguf"]
    due = next_deadline(paper.fleet, paper.now)
    assert due == 0.5
    paper.now = due
    paper.feed(Tick())
    assert paper.loads == ["a.gguf", "a.gguf"]
    paper.loaded("a")
    assert paper.grants[-2:] == [queued, behind]
    assert paper.fleet.instance("a.gguf").restarts == 1


def test_after_a_death_those_in_prefill_begin_anew_once() -> None:
    """Nothing of them was seen; but a prompt over which two engines died is not given to a third."""
    paper = Paper([spec("a", slots=2)], limits())
    streaming, reading = paper.arrive("a"), paper.arrive("a")
    for _ in range(2):
        paper.loaded("a")
        for ticket in {lease.ticket for lease in paper.fleet.instance("a.gguf").leases}:
            paper.feed(GotSlot(ticket))
        paper.feed(Died("a.gguf", DEAD, frozenset({reading})))
        paper.now += 2
        paper.feed(Tick())
    assert streaming not in paper.refusals  # It had its last event from the instance.
    assert paper.refusals == {reading: "engine_failed"}
    assert paper.fleet.waiting == ()
    assert paper.fleet.held == 0


def test_five_deaths_within_a_minute_open_the_breaker_although_requests_are_served_between() -> None:
    """Those who wait and those who come get 503 with Retry-After, until half a minute is over."""
    paper = Paper([spec("a", slots=1)], limits())
    for _ in range(5):
        ticket, queued = paper.arrive("a"), paper.arrive("a")
        paper.loaded("a")
        paper.serve(ticket)
        paper.feed(GotSlot(queued))
        behind = paper.arrive("a")
        paper.feed(Died("a.gguf", DEAD))
        paper.now += 2
        paper.feed(Tick())
        if paper.state("a") is State.LOADING:
            paper.loaded("a")
            paper.serve(behind)
    assert paper.refusals == {behind: "model_failed"}
    assert paper.state("a") is State.ERROR
    late = paper.arrive("a")
    assert paper.refusals[late] == "model_failed"
    paper.now += 30
    paper.arrive("a")
    assert paper.state("a") is State.LOADING


def test_a_death_while_loading_is_tried_again_once_for_those_who_wait() -> None:
    """The first may be bad luck; the second in a row is the file, and its waiters are told."""
    paper = Paper([spec("a")], limits())
    ticket = paper.arrive("a")
    paper.feed(Died("a.gguf", DEAD))
    assert paper.refusals == {}
    paper.now = 0.5
    paper.feed(Tick())
    assert paper.loads == ["a.gguf", "a.gguf"]
    paper.feed(Died("a.gguf", DEAD))
    assert paper.refusals == {ticket: "model_failed"}
    assert paper.fleet.held == 0


def test_a_preloaded_model_comes_back_after_its_death_without_a_request() -> None:
    """It was wanted without one, and still is; a model loaded on demand waits for demand."""
    paper = Paper([spec("a", preload=True), spec("b")], limits())
    paper.up("a", "b")
    paper.feed(Died("a.gguf", DEAD))
    paper.feed(Died("b.gguf", DEAD))
    paper.now += 0.5
    paper.feed(Tick())
    assert paper.state("a") is State.LOADING
    assert paper.state("b") is State.ERROR


def test_an_engine_that_is_stuck_keeps_its_memory_and_gets_nothing_more() -> None:
    """Its queue and arrivals are refused with the reason, others see the memory as taken, until it ends."""
    paper = Paper([spec("a", 60, slots=1), spec("b", 60)], limits(100))
    running, queued, behind, last = (paper.arrive("a") for _ in range(4))
    paper.loaded("a")
    paper.feed(GotSlot(running))
    paper.feed(Stuck("a.gguf", DEAD))
    late = paper.arrive("a")
    assert paper.refusals == dict.fromkeys((queued, behind, last, late), "model_failed")
    assert paper.fleet.held == paper.fleet.instance("a.gguf").reserved > 0
    paper.now += 60
    paper.stopped("a")
    other = paper.arrive("b")
    assert paper.state("b") is State.LOADING
    paper.loaded("b")
    assert paper.grants[-1] == other
    paper.now += 60
    assert paper.fleet.instance("a.gguf").stuck is None


def test_what_fits_only_without_a_model_that_hangs_is_refused_with_503() -> None:
    """At once when it comes, and at once when it waits already; smaller models are served meanwhile."""
    paper = Paper([spec("a", 60, slots=1), spec("b", 60), spec("c", 30)], limits(100))
    running = paper.arrive("a")
    paper.loaded("a")
    paper.feed(GotSlot(running))
    waiting = paper.arrive("b")
    assert paper.state("b") is State.QUEUED
    paper.feed(Stuck("a.gguf", DEAD))
    late = paper.arrive("b")
    assert paper.refusals == dict.fromkeys((waiting, late), "model_failed")
    refusal = next(e.problem for e in paper.of(Refuse) if e.ticket == late)
    assert (refusal.status, refusal.retry_after_s) == (503, 60)
    assert refusal.details == {"need_mb": 60, "stuck_mb": 60, "available_mb": 40}
    assert "held by a.gguf, which hangs" in refusal.message
    small = paper.arrive("c")
    paper.loaded("c")
    assert paper.grants[-1] == small
    paper.serve(small)
    paper.stopped("a")
    again = paper.arrive("b")
    paper.loaded("b")
    assert paper.grants[-1] == again


def test_a_preload_waits_for_the_memory_of_a_model_that_hangs() -> None:
    """Nobody is refused, and when the other one comes back it is loaded."""
    paper = Paper([spec("a", 60, slots=1), spec("b", 60)], limits(100))
    paper.feed(GotSlot(paper.arrive("a")))
    paper.loaded("a")
    paper.feed(Stuck("a.gguf", DEAD))
    paper.feed(Wanted("b.gguf"))
    paper.now += 60
    assert "b.gguf" not in paper.loads
    paper.stopped("a")
    assert paper.loads[-1] == "b.gguf"


def test_a_damaged_file_is_refused_with_its_error() -> None:
    """The sentence of the registry reaches the client."""
    paper = Paper([spec("a", error="the file is empty")], limits())
    ticket = paper.arrive("a")
    assert paper.refusals == {ticket: "model_failed"}
    refusal = next(effect for effect in paper.effects if isinstance(effect, Refuse))
    assert "the file is empty" in refusal.problem.message


def test_a_leaving_client_leaves_the_load_to_the_others() -> None:
    """The load belongs to the scheduler: the first client goes, the second is served."""
    paper = Paper([spec("a")], limits())
    first, second = paper.arrive("a"), paper.arrive("a")
    paper.feed(Left(first))
    paper.loaded("a")
    assert paper.grants == [second]


def test_a_demand_that_nobody_has_any_more_loads_nothing() -> None:
    """Whoever waited for room and left takes his demand along."""
    paper = Paper([spec("a", 60), spec("b", 60)], limits(100))
    running = paper.arrive("a")
    paper.loaded("a")
    paper.feed(GotSlot(running))
    waiting = paper.arrive("b")
    assert paper.state("b") is State.QUEUED
    paper.feed(Left(waiting))
    assert paper.state("b") is State.STOPPED
    paper.feed(Released(running, served=True))
    assert paper.stops == []


def test_a_demand_blocked_on_room_lets_later_ones_use_what_is_free_but_evict_nothing() -> None:
    """The oldest demand has the first right to victims."""
    paper = Paper([spec("a", 60), spec("b", 90), spec("c", 30), spec("d", 40)], limits(100))
    running = paper.arrive("a")
    paper.loaded("a")
    paper.feed(GotSlot(running))
    paper.arrive("b")
    paper.up("c")
    paper.arrive("d")
    assert paper.loads == ["a.gguf", "c.gguf"]
    assert paper.stops == []


def test_cores_are_shared_out_among_those_that_decode() -> None:
    """Two busy instances get one of two cores each; when one falls idle the other gets both."""
    paper = Paper([spec("a"), spec("b")], limits())
    first = paper.arrive("a")
    paper.loaded("a")
    second = paper.arrive("b")
    paper.loaded("b")
    assert [effect.threads for effect in paper.effects if isinstance(effect, Load)] == [2, 1]
    assert ("a.gguf", 1) in paper.threads
    paper.serve(first)
    assert paper.threads[-1] == ("b.gguf", 2)
    paper.serve(second)


def test_an_idle_model_is_unloaded_after_its_time_to_live() -> None:
    """Ttl counts from the last use; keep_alive of a request goes before it."""
    paper = Paper([spec("a", ttl_s=60.0)], limits())
    ticket = paper.arrive("a")
    paper.loaded("a")
    paper.now = 10.0
    paper.serve(ticket)
    assert next_deadline(paper.fleet, paper.now) == 70.0
    paper.now = 70.0
    paper.feed(Tick())
    assert paper.stops == ["a.gguf"]


@pytest.mark.parametrize(("keep_alive", "stops"), [(0.0, ["a.gguf"]), (-1.0, []), (5.0, [])])
def test_keep_alive_of_a_request_goes_before_the_models_ttl(keep_alive: float, stops: list[str]) -> None:
    """0 unloads at once, a negative one never."""
    paper = Paper([spec("a", ttl_s=0.0)], limits())
    ticket = paper.arrive("a", keep_alive_s=keep_alive)
    paper.loaded("a")
    paper.serve(ticket)
    assert paper.stops == stops


def test_a_waiter_during_an_unload_gets_a_new_load() -> None:
    """A model that is stopping is loaded again for whoever came meanwhile."""
    paper = Paper([spec("a", ttl_s=0.0)], limits())
    ticket = paper.arrive("a")
    paper.loaded("a")
    paper.serve(ticket)
    paper.arrive("a")
    assert paper.loads == ["a.gguf"]
    paper.stopped("a")
    assert paper.loads == ["a.gguf", "a.gguf"]


def test_a_changed_file_is_loaded_anew_once_the_old_one_is_idle() -> None:
    """A running request ends in peace, others are served meanwhile; the next load takes the new file."""
    paper = Paper([spec("a")], limits())
    running = paper.arrive("a")
    paper.loaded("a")
    paper.feed(GotSlot(running))
    paper.feed(CatalogChanged(make_catalog([spec("a", modified_ns=7)])))
    meanwhile = paper.arrive("a")
    assert paper.grants == [running, meanwhile]
    paper.serve(meanwhile)
    assert paper.stops == []
    paper.feed(Released(running, served=True))
    assert paper.stops == ["a.gguf"]
    later = paper.arrive("a")
    paper.stopped("a")
    paper.loaded("a")
    assert paper.grants == [running, meanwhile, later]
    assert [e.spec.modified_ns for e in paper.effects if isinstance(e, Load)] == [0, 7]
    paper.serve(later)
    assert paper.stops == ["a.gguf"], "the new one is not out of date"


def test_a_removed_file_refuses_its_waiters() -> None:
    """Whoever waits for a file that is gone is told so."""
    paper = Paper([spec("a")], limits())
    ticket = paper.arrive("a")
    paper.feed(CatalogChanged(make_catalog([])))
    assert paper.refusals == {ticket: "model_not_found"}
    assert paper.stops == ["a.gguf"]


def test_a_preloaded_model_is_loaded_without_waiters() -> None:
    """`preload` is a demand of its own, tried again after a failure."""
    paper = Paper([spec("a")], limits())
    paper.feed(Wanted("a.gguf"))
    assert paper.loads == ["a.gguf"]
    paper.feed(LoadFailed("a.gguf", BROKEN))
    paper.now = next_deadline(paper.fleet, paper.now) or 0.0
    paper.feed(Tick())
    assert paper.loads == ["a.gguf", "a.gguf"]
    paper.loaded("a")
    assert paper.state("a") is State.READY


def test_draining_refuses_new_requests_and_lets_the_others_end() -> None:
    """503 with Retry-After for arrivals; what is inside goes on."""
    paper = Paper([spec("a")], limits())
    inside = paper.arrive("a")
    paper.feed(Drain())
    refused = paper.arrive("a")
    assert paper.refusals == {refused: "draining"}
    paper.loaded("a")
    assert paper.grants == [inside]


def test_cutting_all_ends_every_request_once() -> None:
    """Waiters are refused, leases are cut, nothing is ended twice."""
    paper = Paper([spec("a", slots=1)], limits())
    tickets = [paper.arrive("a") for _ in range(4)]
    paper.loaded("a")
    paper.feed(GotSlot(tickets[0]))
    paper.feed(CutAll())
    assert paper.cuts == {tickets[0]: "shutdown", tickets[1]: "shutdown"}
    assert paper.refusals == {tickets[2]: "draining", tickets[3]: "draining"}
    before = len(paper.effects)
    paper.feed(CutAll())
    assert len(paper.effects) == before


def test_higher_classes_go_first_and_waiting_raises_a_class() -> None:
    """A low one that waited long enough goes before a fresh high one."""
    paper = Paper([spec("a", slots=1)], limits(max_wait_s=1000.0))
    low = paper.arrive("a", priority=Priority.LOW)
    normal = paper.arrive("a")
    high = paper.arrive("a", priority=Priority.HIGH)
    assert queue_order(paper.fleet, "a.gguf", 0.0) == [high, normal, low]
    paper.now = 25.0
    late = paper.arrive("a", priority=Priority.HIGH)
    assert queue_order(paper.fleet, "a.gguf", 25.0) == [high, normal, low, late]


def test_each_eviction_and_load_is_told_with_its_numbers() -> None:
    """The operator sees what was done, why, and the bytes."""
    paper = Paper([spec("a", 60), spec("b", 60)], limits(100))
    paper.up("a")
    paper.now = 600.0
    paper.arrive("b")
    evict = next(e for e in paper.effects if isinstance(e, Tell) and e.action == "evict")
    assert evict.model_id == "a.gguf"
    assert "b.gguf" in evict.reason
    assert evict.numbers == {
        "frees_mb": 60.0,
        "need_mb": 60.0,
        "free_mb": 40.0,
        "reload_s": 0.0,
        "uses_per_min": pytest.approx(60 / 600 / math.e),
    }


def test_an_impossible_move_is_a_defect() -> None:
    """The lifecycle has no way from STOPPED to READY."""
    with pytest.raises(ValueError, match="cannot go from stopped to ready"):
        move(State.STOPPED, State.READY)


def test_a_pinned_model_never_wakes_the_scheduler_for_its_time_to_live() -> None:
    """keep_alive of 0 on a pinned model asks for nothing that would be due for ever."""
    paper = Paper([spec("a", pinned=True, ttl_s=5.0)], limits())
    ticket = paper.arrive("a", keep_alive_s=0.0)
    paper.loaded("a")
    paper.serve(ticket)
    assert next_deadline(paper.fleet, paper.now) is None


def test_a_removed_model_is_forgotten_once_it_holds_nothing() -> None:
    """Its instance leaves the fleet when its memory is given back, not before."""
    paper = Paper([spec("a"), spec("b")], limits())
    paper.up("a")
    paper.arrive("b")
    paper.feed(LoadFailed("b.gguf", BROKEN))
    paper.feed(CatalogChanged(make_catalog([])))
    assert set(paper.fleet.instances) == {"a.gguf"}
    paper.stopped("a")
    assert paper.fleet.instances == {}


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    """Behind two full rounds of 10 s, a request with 5 s is told 503 now; one with 60 s may wait."""
    paper = Paper([spec("a", slots=1)], limits())
    first = paper.arrive("a")
    paper.loaded("a")
    paper.feed(GotSlot(first))
    paper.now = 10.0
    paper.feed(Released(first, served=True))
    for _ in range(2):
        paper.arrive("a")
    hasty = paper.arrive("a", deadline=paper.now + 5.0)
    patient = paper.arrive("a", deadline=paper.now + 60.0)
    assert paper.refusals == {hasty: "deadline_unreachable"}
    refusal = next(effect for effect in paper.effects if isinstance(effect, Refuse))
    assert refusal.problem.status == 503
    assert refusal.problem.retry_after_s == 10
    assert patient in {waiter.ticket for waiter in paper.fleet.waiting} | set(paper.grants)
