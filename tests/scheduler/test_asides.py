# SPDX-License-Identifier: GPL-3.0-only
"""Requests that need a model but none of its slots: decided on paper."""

from __future__ import annotations

from support.fleets import Paper, limits, spec

from modeld.domain.instance_state import State
from modeld.errors import EngineFailed
from modeld.scheduler.inputs import Died, GotSlot, Released
from modeld.scheduler.queue_order import queue_order


def test_an_aside_loads_its_model_like_any_demand() -> None:
    """It waits for the load, makes room within the budget, and keeps the model until it is answered."""
    paper = Paper([spec("a", 100), spec("b", 100)], limits(150))
    paper.up("a")
    aside = paper.arrive("b", aside=True)
    assert paper.stops == ["a.gguf"]
    paper.stopped("a")
    paper.loaded("b")
    assert aside in paper.grants
    assert not paper.fleet.instance("b.gguf").idle
    paper.feed(Released(aside, served=False))
    assert paper.fleet.instance("b.gguf").idle


def test_an_aside_does_not_wait_for_a_slot() -> None:
    """With every slot and the whole FIFO taken it is granted at once, and takes none of their room."""
    paper = Paper([spec("a", slots=1)], limits())
    paper.up("a")
    long = [paper.arrive("a") for _ in range(4)]
    assert set(paper.grants) & set(long[2:]) == set()
    aside = paper.arrive("a", aside=True)
    assert paper.grants[-1] == aside
    view = paper.fleet.instance("a.gguf")
    assert (view.queued, view.live_leases, view.inflight) == (2, 2, 0)
    assert aside not in queue_order(paper.fleet, "a.gguf", paper.now)
    paper.feed(GotSlot(long[0]))
    paper.feed(Released(long[0], served=True))
    assert paper.grants[-1] == long[2]


def test_a_full_queue_refuses_no_aside_and_asides_refuse_no_other() -> None:
    """Each kind is bounded by max_queue_depth on its own."""
    paper = Paper([spec("a", slots=1)], limits(max_queue_depth=1))
    waiting = [paper.arrive("a"), paper.arrive("a")]
    refused = paper.arrive("a")
    aside = paper.arrive("a", aside=True)
    second = paper.arrive("a", aside=True)
    assert paper.refusals == {refused: "queue_full", second: "queue_full"}
    paper.loaded("a")
    assert set(paper.grants) == {*waiting, aside}


def test_max_wait_does_not_end_a_granted_aside() -> None:
    """It waits for no one any more; its own deadline still holds."""
    paper = Paper([spec("a", slots=1)], limits(max_wait_s=5.0))
    paper.up("a")
    aside = paper.arrive("a", aside=True, deadline=paper.now + 20.0)
    paper.now += 10.0
    queued = paper.arrive("a")
    assert paper.cuts == {}
    paper.now += 10.0
    paper.arrive("a")
    assert paper.cuts == {aside: "timeout", queued: "waited"}


def test_an_aside_survives_the_death_of_the_engine() -> None:
    """It waits for the next load, and still needs no slot then."""
    paper = Paper([spec("a", slots=1)], limits())
    paper.up("a")
    aside = paper.arrive("a", aside=True)
    paper.feed(Died("a.gguf", EngineFailed("it broke").as_problem()))
    assert [waiter.aside for waiter in paper.fleet.waiting] == [True]
    paper.now += 1.0
    paper.arrive("a")
    assert paper.state("a") is State.LOADING
    paper.loaded("a")
    assert paper.grants.count(aside) == 2
