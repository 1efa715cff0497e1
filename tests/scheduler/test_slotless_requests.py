# SPDX-License-Identifier: GPL-3.0-only
"""Requests that need a model but none of its slots: decided on driver."""

from __future__ import annotations

from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.instance_state import InstanceState
from modeld.errors import EngineFailed
from modeld.scheduler.inputs import InstanceDied, SlotReleased, SlotTaken
from modeld.scheduler.queue_order import queue_order


def test_a_slotless_request_loads_its_model_like_any_demand() -> None:
    """It waits for the load, makes room within the budget, and keeps the model until it is answered."""
    driver = SchedulerDriver([spec("a", 100), spec("b", 100)], limits(150))
    driver.up("a")
    slotless = driver.arrive("b", needs_no_slot=True)
    assert driver.stops == ["a.gguf"]
    driver.stopped("a")
    driver.loaded("b")
    assert slotless in driver.grants
    assert not driver.fleet.instance("b.gguf").idle
    driver.feed(SlotReleased(slotless, served=False))
    assert driver.fleet.instance("b.gguf").idle


def test_a_slotless_request_does_not_wait_for_a_slot() -> None:
    """With every slot and the whole FIFO taken it is granted at once, and takes none of their room."""
    driver = SchedulerDriver([spec("a", slots=1)], limits())
    driver.up("a")
    long = [driver.arrive("a") for _ in range(4)]
    assert set(driver.grants) & set(long[2:]) == set()
    slotless = driver.arrive("a", needs_no_slot=True)
    assert driver.grants[-1] == slotless
    view = driver.fleet.instance("a.gguf")
    assert (view.queued, view.live_leases, view.inflight) == (2, 2, 0)
    assert slotless not in queue_order(driver.fleet, "a.gguf", driver.now)
    driver.feed(SlotTaken(long[0]))
    driver.feed(SlotReleased(long[0], served=True))
    assert driver.grants[-1] == long[2]


def test_a_full_queue_refuses_no_slotless_request_and_slotless_requests_refuse_no_other() -> None:
    """Each kind is bounded by max_queue_depth on its own."""
    driver = SchedulerDriver([spec("a", slots=1)], limits(max_queue_depth=1))
    waiting = [driver.arrive("a"), driver.arrive("a")]
    refused = driver.arrive("a")
    slotless = driver.arrive("a", needs_no_slot=True)
    second = driver.arrive("a", needs_no_slot=True)
    assert driver.refusals == {refused: "queue_full", second: "queue_full"}
    driver.loaded("a")
    assert set(driver.grants) == {*waiting, slotless}


def test_max_wait_does_not_end_a_granted_slotless_request() -> None:
    """It waits for no one any more; its own deadline still holds."""
    driver = SchedulerDriver([spec("a", slots=1)], limits(max_wait_s=5.0))
    driver.up("a")
    slotless = driver.arrive("a", needs_no_slot=True, deadline=driver.now + 20.0)
    driver.now += 10.0
    queued = driver.arrive("a")
    assert driver.cuts == {}
    driver.now += 10.0
    driver.arrive("a")
    assert driver.cuts == {slotless: "timeout", queued: "waited"}


def test_a_slotless_request_survives_the_death_of_the_engine() -> None:
    """It waits for the next load, and still needs no slot then."""
    driver = SchedulerDriver([spec("a", slots=1)], limits())
    driver.up("a")
    slotless = driver.arrive("a", needs_no_slot=True)
    driver.feed(InstanceDied("a.gguf", EngineFailed("it broke").as_problem()))
    assert [waiter.needs_no_slot for waiter in driver.fleet.waiting] == [True]
    driver.now += 1.0
    driver.arrive("a")
    assert driver.state("a") is InstanceState.LOADING
    driver.loaded("a")
    assert driver.grants.count(slotless) == 2
