# SPDX-License-Identifier: GPL-3.0-only
"""Models that take turns: gates, drains, and memory that is kept for whom it was freed."""

from __future__ import annotations

from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, catalog_of
from modeld.errors import EngineFailed
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.draining import gate_is_closed
from modeld.scheduler.effects import RecordDecision
from modeld.scheduler.inputs import CatalogChanged, InstanceStuck, RequestLeft, SlotReleased, SlotTaken, Tick


class Timed(SchedulerDriver):
    """A scheduler driver whose time passes as in the runtime."""

    def run(self, name: str) -> int:
        """Load a model and put one request into its slot."""
        ticket = self.arrive(name)
        self.loaded(name)
        self.feed(SlotTaken(ticket))
        return ticket

    def pass_to(self, now: float) -> None:
        """Let time pass as the runtime does: a tick whenever one is due."""
        while (due := next_deadline(self.fleet, self.now)) is not None and due <= now:
            self.now = due
            self.feed(Tick())
        self.now = now

    def closed(self, name: str) -> bool:
        return gate_is_closed(self.fleet, self.fleet.instance(f"{name}.gguf"), self.now)


class Pair(Timed):
    """A busy model a (one request in its slot since 0 s) and b, which does not fit alongside it."""

    def __init__(self, *, slots: int = 1, **terms: object) -> None:
        more = {"max_wait_before_drain_s": 2.0, "quantum_s": 3.0, "backlog_time_s": 0.0, "max_wait_s": 1000.0}
        super().__init__([spec("a", 60, slots=slots), spec("b", 60)], limits(100, **{**more, **terms}))
        self.first = self.run("a")


def test_a_gate_closes_when_the_wait_and_the_turn_are_over() -> None:
    """B waits 2 s for room; a's turn of 3 s ends; from then on a's new requests stay in the queue."""
    pair = Pair(slots=2)
    waiter = pair.arrive("b")
    early = pair.arrive("a")
    assert early in pair.grants
    pair.pass_to(2.9)
    assert not pair.closed("a")
    pair.pass_to(3.0)
    assert pair.closed("a")
    late = pair.arrive("a")
    assert late not in pair.grants
    pair.serve(early)
    assert pair.stops == []
    pair.feed(SlotReleased(pair.first, served=True))
    assert pair.stops == ["a.gguf"]
    pair.stopped("a")
    pair.loaded("b")
    assert pair.grants[-1] == waiter


def test_a_model_that_was_drained_gets_its_next_turn_with_the_old_arrival_times() -> None:
    """Those behind a gate keep their place: they have a again as soon as b had its turn."""
    pair = Pair()
    pair.arrive("b")
    pair.pass_to(3.0)
    gated = pair.arrive("a")
    pair.feed(SlotReleased(pair.first, served=True))
    pair.stopped("a")
    assert [waiter.arrived for waiter in pair.fleet.waiters("a.gguf")] == [3.0]
    pair.loaded("b")
    for ticket in pair.grants[-1:]:
        pair.feed(SlotTaken(ticket))
    more = pair.arrive("b")
    assert more in pair.grants
    pair.pass_to(6.0)
    assert pair.closed("b")
    for ticket in pair.grants[-2:]:
        pair.feed(SlotReleased(ticket, served=True))
    pair.stopped("b")
    pair.loaded("a")
    assert pair.grants[-1] == gated


def test_those_who_came_before_the_gate_closed_are_served_first() -> None:
    """Five wait for a when b asks for its memory: all are served; who comes later is not."""
    pair = Pair(backlog_time_s=10.0)
    before = [pair.arrive("a") for _ in range(5)]
    pair.arrive("b")
    pair.pass_to(3.0)
    later = pair.arrive("a")
    pair.feed(SlotReleased(pair.first, served=True))
    for ticket in before:
        pair.now += 1.0
        pair.serve(ticket)
    assert pair.now == 8.0
    assert later not in pair.grants
    assert pair.stops == ["a.gguf"]


def test_the_backlog_is_served_for_its_time_only() -> None:
    """2 s after the gate closed nobody is granted any more, however long he waited."""
    pair = Pair(backlog_time_s=2.0)
    before = [pair.arrive("a") for _ in range(3)]
    pair.arrive("b")
    pair.pass_to(4.9)
    pair.feed(SlotReleased(pair.first, served=True))
    assert pair.grants[-1] == before[1]
    pair.pass_to(5.0)
    pair.serve(before[0])
    pair.serve(before[1])
    assert before[2] not in pair.grants
    assert pair.stops == ["a.gguf"]


def test_a_gate_opens_when_nobody_wants_the_room_any_more() -> None:
    """The waiter for b leaves: a's gated requests are granted in the same step, and a stays."""
    pair = Pair()
    waiter = pair.arrive("b")
    pair.pass_to(3.0)
    gated = pair.arrive("a")
    assert gated not in pair.grants
    pair.feed(RequestLeft(waiter))
    assert gated in pair.grants
    assert pair.fleet.reservations == ()
    assert pair.state("a") is InstanceState.READY


def test_a_model_that_was_just_loaded_serves_its_waiters_even_with_a_quantum_of_zero() -> None:
    """READY and the grants stay one move, whatever the operator sets."""
    pair = Pair(quantum_s=0.0, max_wait_before_drain_s=0.0)
    pair.pass_to(0.5)
    waiter = pair.arrive("b")
    gated = pair.arrive("a")
    assert gated not in pair.grants
    pair.feed(SlotReleased(pair.first, served=True))
    pair.stopped("a")
    pair.loaded("b")
    assert pair.grants[-1] == waiter


def test_no_running_stream_is_cut_unless_the_operator_allows_it() -> None:
    """A stream of an hour is waited for; those who wait for its memory get their max_wait."""
    pair = Pair(max_wait_s=30.0)
    waiter = pair.arrive("b")
    pair.pass_to(3600.0)
    assert pair.cuts == {}
    assert pair.refusals == {waiter: "waited_too_long"}


def test_streams_are_cut_at_the_evict_timeout_where_that_is_allowed() -> None:
    """10 s after the gate closed what still runs is cut, and b gets its room."""
    pair = Pair(cut_streams=True, evict_timeout_s=10.0)
    pair.arrive("b")
    pair.pass_to(12.9)
    assert pair.cuts == {}
    pair.pass_to(13.0)
    assert pair.cuts == {pair.first: "evicted"}
    pair.feed(SlotReleased(pair.first, served=False))
    assert pair.stops == ["a.gguf"]


def test_a_drain_that_takes_too_long_asks_more_models() -> None:
    """The stream of a does not end; 10 s later c is closed as well, and goes as it is idle first."""
    terms = {"quantum_s": 3.0, "backlog_time_s": 4.0, "evict_timeout_s": 6.0, "max_wait_s": 1000.0}
    driver = Timed([spec("a", 50, slots=1), spec("b", 50), spec("c", 50, slots=1)], limits(100, **terms))
    streams = {name: driver.run(name) for name in "ac"}
    driver.arrive("c")
    driver.arrive("b")
    driver.pass_to(12.9)
    assert (driver.closed("a"), driver.closed("c")) == (True, False)
    driver.pass_to(13.0)
    assert (driver.closed("a"), driver.closed("c")) == (True, True)
    queued = driver.grants[-1]
    driver.feed(SlotReleased(streams["c"], served=True))
    driver.serve(queued)
    assert driver.stops == ["c.gguf"]
    assert not driver.closed("a")


def test_the_bytes_of_a_victim_are_kept_for_whom_it_went() -> None:
    """B (80) had a (60) evicted; c (40) would fit into the free 40 meanwhile, but then b could not load."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 80), spec("c", 40)], limits(100))
    driver.up("a")
    driver.arrive("b")
    assert driver.stops == ["a.gguf"]
    driver.arrive("c")
    assert driver.loads == ["a.gguf"]
    driver.stopped("a")
    assert driver.loads == ["a.gguf", "b.gguf"]


def test_what_a_reservation_does_not_need_is_for_others() -> None:
    """B (50) has a (60) evicted; of the 40 that are free, c may take 40 at once, as b's bytes come from a."""
    driver = SchedulerDriver([spec("a", 60), spec("b", 50), spec("c", 40)], limits(100))
    driver.up("a")
    driver.arrive("b")
    driver.arrive("c")
    assert driver.loads == ["a.gguf", "c.gguf"]
    driver.stopped("a")
    assert driver.loads == ["a.gguf", "c.gguf", "b.gguf"]


def test_the_older_of_two_reservations_is_met_first() -> None:
    """A and b (30 each) go for x (70), then c for y (30): a's bytes would do for y, but they are x's."""
    driver = SchedulerDriver([*(spec(name, 30) for name in "abc"), spec("x", 70), spec("y", 30)], limits(100))
    driver.up("a", "b", "c")
    driver.arrive("x")
    driver.arrive("y")
    assert driver.stops == ["a.gguf", "b.gguf", "c.gguf"]
    driver.stopped("a")
    assert driver.loads[3:] == []
    driver.stopped("b")
    assert driver.loads[3:] == ["x.gguf"]
    driver.stopped("c")
    assert driver.loads[3:] == ["x.gguf", "y.gguf"]


def test_small_models_cannot_keep_a_large_one_out() -> None:
    """Once the large one waited long enough, the free bytes are its own, however many small ones come."""
    specs = [spec("big", 90), *(spec(name, 30, slots=1) for name in "abcd")]
    terms = {"max_wait_before_drain_s": 2.0, "quantum_s": 1.0, "max_wait_s": 1000.0}
    driver = Timed(specs, limits(100, **terms))
    running = {name: driver.run(name) for name in "ab"}
    driver.arrive("big")
    driver.pass_to(2.0)
    driver.arrive("c")
    driver.arrive("d")
    for name in "ab":
        driver.feed(SlotReleased(running[name], served=True))
    driver.stopped("a")
    assert "c.gguf" not in driver.loads
    driver.stopped("b")
    assert driver.loads == ["a.gguf", "b.gguf", "big.gguf"]


def test_victims_that_are_idle_stay_until_all_of_them_are() -> None:
    """Big needs a and b; a is idle long before b: it goes when b can go too, so no eviction is in vain."""
    specs = [spec("a", 50, slots=1), spec("b", 50, slots=1), spec("big", 90)]
    driver = Timed(specs, limits(100, max_wait_before_drain_s=1.0, quantum_s=1.0, max_wait_s=1000.0))
    driver.up("a")
    stream = driver.run("b")
    large = driver.arrive("big")
    driver.pass_to(10.0)
    assert driver.closed("a")
    assert driver.stops == []
    driver.feed(RequestLeft(large))
    assert not driver.closed("a")
    driver.arrive("big")
    driver.pass_to(20.0)
    driver.feed(SlotReleased(stream, served=True))
    assert sorted(driver.stops) == ["a.gguf", "b.gguf"]


def test_an_idle_model_stays_for_its_minimum_residency() -> None:
    """With min_residency of 5 s a swap waits until a was ready for 5 s."""
    driver = Timed([spec("a", 60), spec("b", 60)], limits(100, min_residency_s=5.0))
    driver.up("a")
    driver.arrive("b")
    driver.pass_to(4.9)
    assert driver.stops == []
    driver.pass_to(5.0)
    assert driver.stops == ["a.gguf"]


def test_a_pinned_model_is_no_victim_from_then_on() -> None:
    """A is pinned while it drains for b: its gate opens, and b is told that it cannot fit."""
    pair = Pair()
    waiter = pair.arrive("b")
    pair.pass_to(3.0)
    gated = pair.arrive("a")
    pair.feed(CatalogChanged(catalog_of([spec("a", 60, slots=1, pinned=True), spec("b", 60)])))
    assert pair.refusals == {waiter: "does_not_fit"}
    assert gated in pair.grants


def test_each_drain_is_told_with_its_numbers() -> None:
    """The operator sees for whom a model drains, how long that one waited, and when the gate closes."""
    pair = Pair()
    pair.arrive("b")
    pair.pass_to(2.0)
    told = next(
        effect for effect in pair.effects if isinstance(effect, RecordDecision) and effect.action == "drain"
    )
    assert told.model_id == "a.gguf"
    assert "b.gguf" in told.reason
    assert told.numbers == {"waited_s": 2.0, "closes_in_s": 1.0, "running": 1, "frees_mb": 60.0}


def test_a_load_does_not_reset_what_a_request_has_waited_for_others() -> None:
    """Of max_wait, 20 s for room are gone; a load of 50 s counts nothing; 10 s for a slot are left."""
    pair = Pair(max_wait_s=30.0, max_wait_before_drain_s=0.0, quantum_s=0.0)
    waiters = [pair.arrive("b") for _ in range(5)]
    pair.pass_to(20.0)
    pair.feed(SlotReleased(pair.first, served=True))
    pair.stopped("a")
    pair.pass_to(70.0)
    pair.loaded("b")
    for ticket in waiters[:2]:
        pair.feed(SlotTaken(ticket))
    pair.pass_to(79.9)
    assert {**pair.refusals, **pair.cuts} == {}
    pair.pass_to(80.0)
    assert set(pair.refusals) | set(pair.cuts) == set(waiters[2:])


def test_a_victim_that_hangs_is_not_waited_for() -> None:
    """When a is stopped for b and hangs, c, which is idle too, goes instead; a's bytes are still held."""
    driver = SchedulerDriver([spec("a", 50), spec("b", 50), spec("c", 50)], limits(100))
    driver.up("a", "c")
    driver.arrive("b")
    assert driver.stops == ["a.gguf"]
    driver.feed(InstanceStuck("a.gguf", EngineFailed("it hangs").as_problem()))
    assert driver.stops == ["a.gguf", "c.gguf"]
    driver.stopped("c")
    assert driver.loads == ["a.gguf", "c.gguf", "b.gguf"]
    assert driver.fleet.held == 100 * MIB
