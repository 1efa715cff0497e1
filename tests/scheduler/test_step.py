# SPDX-License-Identifier: GPL-3.0-only
"""The scheduler's decisions, on driver: no clock, no thread, no server."""

from __future__ import annotations

import math

import pytest
from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.instance_state import InstanceState, transition
from modeld.domain.model import MIB, catalog_of
from modeld.domain.request import Priority
from modeld.errors import EngineFailed, ModelFailed
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import RecordDecision, Refuse, StartLoad
from modeld.scheduler.inputs import (
    CatalogChanged,
    CutAllRequests,
    DrainAll,
    InstanceDied,
    InstanceLoadFailed,
    InstanceStuck,
    ModelWanted,
    RequestLeft,
    SlotReleased,
    SlotTaken,
    Tick,
)
from modeld.scheduler.queue_order import queue_order

BROKEN = ModelFailed("the file ends too early").as_problem()
DEAD = EngineFailed("the engine broke").as_problem()


def test_waiters_for_one_model_share_one_load() -> None:
    """Three requests for a cold model start one load, and all three are granted when it is ready."""
    driver = SchedulerDriver([spec("a", slots=4)], limits())
    tickets = [driver.arrive("a") for _ in range(3)]
    assert driver.loads == ["a.gguf"]
    driver.loaded("a")
    assert driver.grants == tickets


def test_ready_and_the_grants_are_one_move() -> None:
    """A model that was just loaded has its waiters' leases at once, so it is no victim before them."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 60)], limits(100))
    driver.arrive("a")
    driver.arrive("b")
    driver.loaded("a")
    assert driver.state("a") is InstanceState.READY
    assert not driver.fleet.instance("a.gguf").idle
    assert driver.stops == []


def test_a_fifo_takes_one_round_of_slots_beyond_those_that_run() -> None:
    """Of ten waiters for two slots, four are granted; the rest stay with the scheduler."""
    driver = SchedulerDriver([spec("a", slots=2)], limits())
    tickets = [driver.arrive("a") for _ in range(10)]
    driver.loaded("a")
    assert driver.grants == tickets[:4]
    driver.serve(tickets[0])
    assert driver.grants == tickets[:5]


def test_what_exceeds_the_budget_is_refused_at_once_and_evicts_nothing() -> None:
    """A model larger than the budget gets 507 with its numbers, and the loaded model stays."""
    driver = SchedulerDriver([spec("a", 60), spec("big", 200)], limits(100))
    driver.up("a")
    ticket = driver.arrive("big")
    refusal = next(effect for effect in driver.effects if isinstance(effect, Refuse))
    assert driver.refusals == {ticket: "does_not_fit"}
    assert refusal.problem.details["need_mb"] == 200
    assert refusal.problem.details["budget_mb"] == 100
    assert driver.state("a") is InstanceState.READY


def test_a_model_that_fits_only_without_the_pinned_ones_is_refused() -> None:
    """Pinned models never go, so what cannot fit alongside them cannot fit."""
    driver = SchedulerDriver([spec("a", 60, pinned=True), spec("b", 60)], limits(100))
    driver.up("a")
    refused = driver.arrive("b")
    assert driver.refusals == {refused: "does_not_fit"}


def test_the_margin_is_never_used() -> None:
    """Budget less margin is what models may take."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 40)], limits(100, margin=1 * MIB))
    driver.up("a")
    driver.arrive("b")
    assert driver.state("b") is InstanceState.QUEUED
    assert driver.stops == ["a.gguf"]


def test_the_least_recently_used_idle_model_goes() -> None:
    """Of two idle models, the one that was used longer ago makes room."""
    driver = SchedulerDriver([spec("a", 40), spec("b", 40), spec("c", 40)], limits(100))
    driver.up("a", "b")
    driver.serve(driver.arrive("a"))
    driver.arrive("c")
    assert driver.stops == ["b.gguf"]


def test_the_next_load_waits_until_the_memory_was_given_back() -> None:
    """A victim's bytes count as free only when it has stopped."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 60)], limits(100))
    driver.up("a")
    driver.arrive("b")
    assert driver.loads == ["a.gguf"]
    assert driver.state("b") is InstanceState.QUEUED
    driver.stopped("a")
    assert driver.loads == ["a.gguf", "b.gguf"]


def test_a_busy_model_is_never_a_victim() -> None:
    """A model with a lease stays, however long another waits."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 60)], limits(100))
    ticket = driver.arrive("a")
    driver.loaded("a")
    driver.feed(SlotTaken(ticket))
    driver.arrive("b")
    driver.now = 29.0
    driver.feed(Tick())
    assert driver.state("a") is InstanceState.READY
    driver.feed(SlotReleased(ticket, served=True))
    assert driver.stops == ["a.gguf"]


def test_a_loading_model_is_no_victim() -> None:
    """What is on its way in is not thrown out."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 60)], limits(100))
    driver.arrive("a")
    driver.arrive("b")
    assert driver.stops == []
    assert driver.state("b") is InstanceState.QUEUED


def test_two_loads_at_once_do_not_count_the_same_bytes() -> None:
    """A reservation is made when a load starts, so the second of two sees what is left."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 60), spec("c", 30)], limits(100))
    for name in "abc":
        driver.arrive(name)
    assert driver.loads == ["a.gguf", "c.gguf"]
    assert driver.fleet.held == 90 * MIB


def test_nothing_is_evicted_when_all_victims_together_are_not_enough() -> None:
    """An eviction that cannot help is not made."""
    driver = SchedulerDriver([spec("a", 30), spec("b", 60), spec("c", 80)], limits(100))
    driver.up("a")
    ticket = driver.arrive("b")
    driver.loaded("b")
    driver.feed(SlotTaken(ticket))
    driver.arrive("c")
    assert driver.stops == []


def test_a_pinned_model_is_never_a_victim() -> None:
    """Whoever needs room, pinned models stay; the idle other one goes."""
    driver = SchedulerDriver([spec("a", 40, pinned=True), spec("b", 40), spec("c", 40)], limits(100))
    driver.up("a", "b")
    driver.arrive("c")
    assert driver.stops == ["b.gguf"]


def test_a_full_queue_refuses_with_a_time_to_retry() -> None:
    """Slots plus max_queue_depth requests are inside; the next one gets 429 and Retry-After."""
    driver = SchedulerDriver([spec("a", slots=2)], limits(max_queue_depth=3))
    inside = [driver.arrive("a") for _ in range(5)]
    refused = driver.arrive("a")
    assert driver.refusals == {refused: "queue_full"}
    problem = next(effect.problem for effect in driver.effects if isinstance(effect, Refuse))
    assert problem.retry_after_s is not None
    assert problem.retry_after_s >= 1
    driver.feed(RequestLeft(inside[4]))
    assert driver.arrive("a") not in driver.refusals


def test_a_model_may_have_its_own_queue_depth() -> None:
    """The catalogue's depth goes before the daemon's."""
    driver = SchedulerDriver([spec("a", slots=1, max_queue_depth=0)], limits())
    driver.arrive("a")
    refused = driver.arrive("a")
    assert driver.refusals == {refused: "queue_full"}


def test_waiting_too_long_for_a_slot_is_refused_with_429() -> None:
    """After max_wait without a slot, waiters and those in the FIFO are told to come back."""
    driver = SchedulerDriver([spec("a", slots=1)], limits(max_wait_s=30.0))
    tickets = [driver.arrive("a") for _ in range(3)]
    driver.loaded("a")
    driver.feed(SlotTaken(tickets[0]))
    assert next_deadline(driver.fleet, driver.now) == 30.0
    driver.now = 30.0
    driver.feed(Tick())
    assert driver.cuts == {tickets[1]: "waited"}
    assert driver.refusals == {tickets[2]: "waited_too_long"}


def test_the_time_of_its_own_load_does_not_count_as_waiting() -> None:
    """A load of two minutes does not time its waiters out; max_wait starts when the model is ready."""
    driver = SchedulerDriver([spec("a", slots=1)], limits(max_wait_s=30.0))
    tickets = [driver.arrive("a") for _ in range(3)]
    driver.now = 120.0
    driver.feed(Tick())
    assert driver.refusals == {}
    driver.loaded("a")
    driver.feed(SlotTaken(tickets[0]))
    driver.now = 149.0
    driver.feed(Tick())
    assert driver.cuts == {}
    driver.now = 150.0
    driver.feed(Tick())
    assert set(driver.cuts) | set(driver.refusals) == set(tickets[1:])


@pytest.mark.parametrize("phase", ["queued", "loading", "slot"])
def test_a_deadline_ends_a_request_in_every_phase(phase: str) -> None:
    """Time over: refused while it waits, cut when it has a lease."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 60)], limits(100))
    if phase == "queued":
        driver.arrive("b")
    ticket = driver.arrive("a", deadline=5.0)
    if phase == "slot":
        driver.loaded("a")
        driver.feed(SlotTaken(ticket))
    assert next_deadline(driver.fleet, 3.0) == 5.0
    driver.now = 5.0
    driver.feed(Tick())
    if phase == "slot":
        assert driver.cuts == {ticket: "timeout"}
    else:
        assert driver.refusals == {ticket: "deadline_exceeded"}


def test_the_operators_infer_timeout_bounds_the_clients() -> None:
    """A client may ask for less time than infer_timeout, not for more."""
    driver = SchedulerDriver([spec("a")], limits(infer_timeout_s=10.0))
    driver.arrive("a", deadline=100.0)
    driver.arrive("a", deadline=3.0)
    driver.arrive("a")
    assert [waiter.deadline for waiter in driver.fleet.waiting] == [10.0, 3.0, 10.0]


def test_a_failed_load_refuses_its_waiters_and_backs_off() -> None:
    """Waiters get 503 with Retry-After, arrivals too until the backoff is over, then it is tried again."""
    driver = SchedulerDriver([spec("a")], limits())
    first = driver.arrive("a")
    driver.feed(InstanceLoadFailed("a.gguf", BROKEN))
    assert driver.state("a") is InstanceState.ERROR
    assert driver.fleet.held == 0
    second = driver.arrive("a")
    assert driver.refusals == {first: "model_failed", second: "model_failed"}
    driver.now = 0.5
    driver.arrive("a")
    assert driver.loads == ["a.gguf", "a.gguf"]


def test_the_backoff_doubles_up_to_five_minutes() -> None:
    """0.5 s, 1 s, 2 s, ... and never more than 300 s between two tries."""
    driver = SchedulerDriver([spec("a")], limits())
    waits = []
    for _ in range(15):
        driver.arrive("a")
        driver.feed(InstanceLoadFailed("a.gguf", BROKEN))
        waits.append(driver.fleet.instance("a.gguf").failures.retry_at - driver.now)
        driver.now += waits[-1]
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert waits[4] == 30.0  # the breaker: five failures within a minute
    assert max(waits) == waits[-1] == 300.0


def test_nothing_is_evicted_for_a_model_that_backs_off() -> None:
    """A request for a failing model is refused before anybody has to go."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 60)], limits(100))
    driver.arrive("b")
    driver.feed(InstanceLoadFailed("b.gguf", BROKEN))
    driver.up("a")
    driver.now = driver.fleet.instance("b.gguf").failures.retry_at - 0.1
    driver.arrive("b")
    assert driver.stops == []


def test_after_a_death_those_without_a_slot_wait_for_the_restart() -> None:
    """What was in a slot is lost; what had not begun is served by the next engine."""
    driver = SchedulerDriver([spec("a", slots=1)], limits())
    running, queued, behind = (driver.arrive("a") for _ in range(3))
    driver.loaded("a")
    driver.feed(SlotTaken(running))
    driver.feed(InstanceDied("a.gguf", DEAD))
    assert [waiter.ticket for waiter in driver.fleet.waiting] == [queued, behind]
    assert driver.loads == ["a.gguf"]
    due = next_deadline(driver.fleet, driver.now)
    assert due == 0.5
    driver.now = due
    driver.feed(Tick())
    assert driver.loads == ["a.gguf", "a.gguf"]
    driver.loaded("a")
    assert driver.grants[-2:] == [queued, behind]
    assert driver.fleet.instance("a.gguf").restarts == 1


def test_after_a_death_those_in_prefill_begin_anew_once() -> None:
    """Nothing of them was seen; but a prompt over which two engines died is not given to a third."""
    driver = SchedulerDriver([spec("a", slots=2)], limits())
    streaming, reading = driver.arrive("a"), driver.arrive("a")
    for _ in range(2):
        driver.loaded("a")
        for ticket in {lease.request.ticket for lease in driver.fleet.instance("a.gguf").leases}:
            driver.feed(SlotTaken(ticket))
        driver.feed(InstanceDied("a.gguf", DEAD, frozenset({reading})))
        driver.now += 2
        driver.feed(Tick())
    assert streaming not in driver.refusals  # It had its last event from the instance.
    assert driver.refusals == {reading: "engine_failed"}
    assert driver.fleet.waiting == ()
    assert driver.fleet.held == 0


def test_five_deaths_within_a_minute_open_the_breaker_although_requests_are_served_between() -> None:
    """Those who wait and those who come get 503 with Retry-After, until half a minute is over."""
    driver = SchedulerDriver([spec("a", slots=1)], limits())
    for _ in range(5):
        ticket, queued = driver.arrive("a"), driver.arrive("a")
        driver.loaded("a")
        driver.serve(ticket)
        driver.feed(SlotTaken(queued))
        behind = driver.arrive("a")
        driver.feed(InstanceDied("a.gguf", DEAD))
        driver.now += 2
        driver.feed(Tick())
        if driver.state("a") is InstanceState.LOADING:
            driver.loaded("a")
            driver.serve(behind)
    assert driver.refusals == {behind: "model_failed"}
    assert driver.state("a") is InstanceState.ERROR
    late = driver.arrive("a")
    assert driver.refusals[late] == "model_failed"
    driver.now += 30
    driver.arrive("a")
    assert driver.state("a") is InstanceState.LOADING


def test_a_death_while_loading_is_tried_again_once_for_those_who_wait() -> None:
    """The first may be bad luck; the second in a row is the file, and its waiters are told."""
    driver = SchedulerDriver([spec("a")], limits())
    ticket = driver.arrive("a")
    driver.feed(InstanceDied("a.gguf", DEAD))
    assert driver.refusals == {}
    driver.now = 0.5
    driver.feed(Tick())
    assert driver.loads == ["a.gguf", "a.gguf"]
    driver.feed(InstanceDied("a.gguf", DEAD))
    assert driver.refusals == {ticket: "model_failed"}
    assert driver.fleet.held == 0


def test_a_preloaded_model_comes_back_after_its_death_without_a_request() -> None:
    """It was wanted without one, and still is; a model loaded on demand waits for demand."""
    driver = SchedulerDriver([spec("a", preload=True), spec("b")], limits())
    driver.up("a", "b")
    driver.feed(InstanceDied("a.gguf", DEAD))
    driver.feed(InstanceDied("b.gguf", DEAD))
    driver.now += 0.5
    driver.feed(Tick())
    assert driver.state("a") is InstanceState.LOADING
    assert driver.state("b") is InstanceState.ERROR


def test_an_engine_that_is_stuck_keeps_its_memory_and_gets_nothing_more() -> None:
    """Its queue and arrivals are refused with the reason, others see the memory as taken, until it ends."""
    driver = SchedulerDriver([spec("a", 60, slots=1), spec("b", 60)], limits(100))
    running, queued, behind, last = (driver.arrive("a") for _ in range(4))
    driver.loaded("a")
    driver.feed(SlotTaken(running))
    driver.feed(InstanceStuck("a.gguf", DEAD))
    late = driver.arrive("a")
    assert driver.refusals == dict.fromkeys((queued, behind, last, late), "model_failed")
    assert driver.fleet.held == driver.fleet.instance("a.gguf").reserved > 0
    driver.now += 60
    driver.stopped("a")
    other = driver.arrive("b")
    assert driver.state("b") is InstanceState.LOADING
    driver.loaded("b")
    assert driver.grants[-1] == other
    driver.now += 60
    assert driver.fleet.instance("a.gguf").stuck is None


def test_what_fits_only_without_a_model_that_hangs_is_refused_with_503() -> None:
    """At once when it comes, and at once when it waits already; smaller models are served meanwhile."""
    driver = SchedulerDriver([spec("a", 60, slots=1), spec("b", 60), spec("c", 30)], limits(100))
    running = driver.arrive("a")
    driver.loaded("a")
    driver.feed(SlotTaken(running))
    waiting = driver.arrive("b")
    assert driver.state("b") is InstanceState.QUEUED
    driver.feed(InstanceStuck("a.gguf", DEAD))
    late = driver.arrive("b")
    assert driver.refusals == dict.fromkeys((waiting, late), "model_failed")
    refusal = next(e.problem for e in driver.of(Refuse) if e.ticket == late)
    assert (refusal.status, refusal.retry_after_s) == (503, 60)
    assert refusal.details == {"need_mb": 60, "stuck_mb": 60, "available_mb": 40}
    assert "held by a.gguf, which hangs" in refusal.message
    small = driver.arrive("c")
    driver.loaded("c")
    assert driver.grants[-1] == small
    driver.serve(small)
    driver.stopped("a")
    again = driver.arrive("b")
    driver.loaded("b")
    assert driver.grants[-1] == again


def test_a_preload_waits_for_the_memory_of_a_model_that_hangs() -> None:
    """Nobody is refused, and when the other one comes back it is loaded."""
    driver = SchedulerDriver([spec("a", 60, slots=1), spec("b", 60)], limits(100))
    driver.feed(SlotTaken(driver.arrive("a")))
    driver.loaded("a")
    driver.feed(InstanceStuck("a.gguf", DEAD))
    driver.feed(ModelWanted("b.gguf"))
    driver.now += 60
    assert "b.gguf" not in driver.loads
    driver.stopped("a")
    assert driver.loads[-1] == "b.gguf"


def test_a_damaged_file_is_refused_with_its_error() -> None:
    """The sentence of the registry reaches the client."""
    driver = SchedulerDriver([spec("a", error="the file is empty")], limits())
    ticket = driver.arrive("a")
    assert driver.refusals == {ticket: "model_failed"}
    refusal = next(effect for effect in driver.effects if isinstance(effect, Refuse))
    assert "the file is empty" in refusal.problem.message


def test_a_leaving_client_leaves_the_load_to_the_others() -> None:
    """The load belongs to the scheduler: the first client goes, the second is served."""
    driver = SchedulerDriver([spec("a")], limits())
    first, second = driver.arrive("a"), driver.arrive("a")
    driver.feed(RequestLeft(first))
    driver.loaded("a")
    assert driver.grants == [second]


def test_a_demand_that_nobody_has_any_more_loads_nothing() -> None:
    """Whoever waited for room and left takes his demand along."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 60)], limits(100))
    running = driver.arrive("a")
    driver.loaded("a")
    driver.feed(SlotTaken(running))
    waiting = driver.arrive("b")
    assert driver.state("b") is InstanceState.QUEUED
    driver.feed(RequestLeft(waiting))
    assert driver.state("b") is InstanceState.STOPPED
    driver.feed(SlotReleased(running, served=True))
    assert driver.stops == []


def test_a_demand_blocked_on_room_lets_later_ones_use_what_is_free_but_evict_nothing() -> None:
    """The oldest demand has the first right to victims."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 90), spec("c", 30), spec("d", 40)], limits(100))
    running = driver.arrive("a")
    driver.loaded("a")
    driver.feed(SlotTaken(running))
    driver.arrive("b")
    driver.up("c")
    driver.arrive("d")
    assert driver.loads == ["a.gguf", "c.gguf"]
    assert driver.stops == []


def test_cores_are_shared_out_among_those_that_decode() -> None:
    """Two busy instances get one of two cores each; when one falls idle the other gets both."""
    driver = SchedulerDriver([spec("a"), spec("b")], limits())
    first = driver.arrive("a")
    driver.loaded("a")
    second = driver.arrive("b")
    driver.loaded("b")
    assert [effect.threads for effect in driver.effects if isinstance(effect, StartLoad)] == [2, 1]
    assert ("a.gguf", 1) in driver.threads
    driver.serve(first)
    assert driver.threads[-1] == ("b.gguf", 2)
    driver.serve(second)


def test_an_idle_model_is_unloaded_after_its_time_to_live() -> None:
    """Ttl counts from the last use; keep_alive of a request goes before it."""
    driver = SchedulerDriver([spec("a", ttl_s=60.0)], limits())
    ticket = driver.arrive("a")
    driver.loaded("a")
    driver.now = 10.0
    driver.serve(ticket)
    assert next_deadline(driver.fleet, driver.now) == 70.0
    driver.now = 70.0
    driver.feed(Tick())
    assert driver.stops == ["a.gguf"]


@pytest.mark.parametrize(("keep_alive", "stops"), [(0.0, ["a.gguf"]), (-1.0, []), (5.0, [])])
def test_keep_alive_of_a_request_goes_before_the_models_ttl(keep_alive: float, stops: list[str]) -> None:
    """0 unloads at once, a negative one never."""
    driver = SchedulerDriver([spec("a", ttl_s=0.0)], limits())
    ticket = driver.arrive("a", keep_alive_s=keep_alive)
    driver.loaded("a")
    driver.serve(ticket)
    assert driver.stops == stops


def test_a_waiter_during_an_unload_gets_a_new_load() -> None:
    """A model that is stopping is loaded again for whoever came meanwhile."""
    driver = SchedulerDriver([spec("a", ttl_s=0.0)], limits())
    ticket = driver.arrive("a")
    driver.loaded("a")
    driver.serve(ticket)
    driver.arrive("a")
    assert driver.loads == ["a.gguf"]
    driver.stopped("a")
    assert driver.loads == ["a.gguf", "a.gguf"]


def test_a_changed_file_is_loaded_anew_once_the_old_one_is_idle() -> None:
    """A running request ends in peace, others are served meanwhile; the next load takes the new file."""
    driver = SchedulerDriver([spec("a")], limits())
    running = driver.arrive("a")
    driver.loaded("a")
    driver.feed(SlotTaken(running))
    driver.feed(CatalogChanged(catalog_of([spec("a", modified_ns=7)])))
    meanwhile = driver.arrive("a")
    assert driver.grants == [running, meanwhile]
    driver.serve(meanwhile)
    assert driver.stops == []
    driver.feed(SlotReleased(running, served=True))
    assert driver.stops == ["a.gguf"]
    later = driver.arrive("a")
    driver.stopped("a")
    driver.loaded("a")
    assert driver.grants == [running, meanwhile, later]
    assert [e.spec.modified_ns for e in driver.effects if isinstance(e, StartLoad)] == [0, 7]
    driver.serve(later)
    assert driver.stops == ["a.gguf"], "the new one is not out of date"


def test_a_removed_file_refuses_its_waiters() -> None:
    """Whoever waits for a file that is gone is told so."""
    driver = SchedulerDriver([spec("a")], limits())
    ticket = driver.arrive("a")
    driver.feed(CatalogChanged(catalog_of([])))
    assert driver.refusals == {ticket: "model_not_found"}
    assert driver.stops == ["a.gguf"]


def test_a_preloaded_model_is_loaded_without_waiters() -> None:
    """`preload` is a demand of its own, tried again after a failure."""
    driver = SchedulerDriver([spec("a")], limits())
    driver.feed(ModelWanted("a.gguf"))
    assert driver.loads == ["a.gguf"]
    driver.feed(InstanceLoadFailed("a.gguf", BROKEN))
    driver.now = next_deadline(driver.fleet, driver.now) or 0.0
    driver.feed(Tick())
    assert driver.loads == ["a.gguf", "a.gguf"]
    driver.loaded("a")
    assert driver.state("a") is InstanceState.READY


def test_draining_refuses_new_requests_and_lets_the_others_end() -> None:
    """503 with Retry-After for arrivals; what is inside goes on."""
    driver = SchedulerDriver([spec("a")], limits())
    inside = driver.arrive("a")
    driver.feed(DrainAll())
    refused = driver.arrive("a")
    assert driver.refusals == {refused: "draining"}
    driver.loaded("a")
    assert driver.grants == [inside]


def test_cutting_all_ends_every_request_once() -> None:
    """Waiters are refused, leases are cut, nothing is ended twice."""
    driver = SchedulerDriver([spec("a", slots=1)], limits())
    tickets = [driver.arrive("a") for _ in range(4)]
    driver.loaded("a")
    driver.feed(SlotTaken(tickets[0]))
    driver.feed(CutAllRequests())
    assert driver.cuts == {tickets[0]: "shutdown", tickets[1]: "shutdown"}
    assert driver.refusals == {tickets[2]: "draining", tickets[3]: "draining"}
    before = len(driver.effects)
    driver.feed(CutAllRequests())
    assert len(driver.effects) == before


def test_higher_classes_go_first_and_waiting_raises_a_class() -> None:
    """A low one that waited long enough goes before a fresh high one."""
    driver = SchedulerDriver([spec("a", slots=1)], limits(max_wait_s=1000.0))
    low = driver.arrive("a", priority=Priority.LOW)
    normal = driver.arrive("a")
    high = driver.arrive("a", priority=Priority.HIGH)
    assert queue_order(driver.fleet, "a.gguf", 0.0) == [high, normal, low]
    driver.now = 25.0
    late = driver.arrive("a", priority=Priority.HIGH)
    assert queue_order(driver.fleet, "a.gguf", 25.0) == [high, normal, low, late]


def test_each_eviction_and_load_is_told_with_its_numbers() -> None:
    """The operator sees what was done, why, and the bytes."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 60)], limits(100))
    driver.up("a")
    driver.now = 600.0
    driver.arrive("b")
    evict = next(e for e in driver.effects if isinstance(e, RecordDecision) and e.action == "evict")
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
        transition(InstanceState.STOPPED, InstanceState.READY)


def test_a_pinned_model_never_wakes_the_scheduler_for_its_time_to_live() -> None:
    """keep_alive of 0 on a pinned model asks for nothing that would be due for ever."""
    driver = SchedulerDriver([spec("a", pinned=True, ttl_s=5.0)], limits())
    ticket = driver.arrive("a", keep_alive_s=0.0)
    driver.loaded("a")
    driver.serve(ticket)
    assert next_deadline(driver.fleet, driver.now) is None


def test_a_removed_model_is_forgotten_once_it_holds_nothing() -> None:
    """Its instance leaves the fleet when its memory is given back, not before."""
    driver = SchedulerDriver([spec("a"), spec("b")], limits())
    driver.up("a")
    driver.arrive("b")
    driver.feed(InstanceLoadFailed("b.gguf", BROKEN))
    driver.feed(CatalogChanged(catalog_of([])))
    assert set(driver.fleet.instances) == {"a.gguf"}
    driver.stopped("a")
    assert driver.fleet.instances == {}


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    """Behind two full rounds of 10 s, a request with 5 s is told 503 now; one with 60 s may wait."""
    driver = SchedulerDriver([spec("a", slots=1)], limits())
    first = driver.arrive("a")
    driver.loaded("a")
    driver.feed(SlotTaken(first))
    driver.now = 10.0
    driver.feed(SlotReleased(first, served=True))
    for _ in range(2):
        driver.arrive("a")
    hasty = driver.arrive("a", deadline=driver.now + 5.0)
    patient = driver.arrive("a", deadline=driver.now + 60.0)
    assert driver.refusals == {hasty: "deadline_unreachable"}
    refusal = next(effect for effect in driver.effects if isinstance(effect, Refuse))
    assert refusal.problem.status == 503
    assert refusal.problem.retry_after_s == 10
    assert patient in {waiter.ticket for waiter in driver.fleet.waiting} | set(driver.grants)
