# SPDX-License-Identifier: GPL-3.0-only
"""Whatever happens, in whatever order: the ledger holds, and every ticket ends exactly once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fleets import Paper, limits, spec

from modeld.core.effects import Cut, Effect, Grant, Load, Refuse, Stop
from modeld.core.inputs import CutAll, Died, GotSlot, Left, Loaded, LoadFailed, Released, Stopped, Stuck, Tick
from modeld.core.lifecycle import State
from modeld.core.models import MIB
from modeld.core.wake import next_deadline
from modeld.errors import EngineFailed, ModelFailed

BUDGET_MB = 100
SIZES = {"a": 30, "b": 45, "c": 60, "d": 90, "e": 120}
PROBLEM = EngineFailed("the engine broke").as_problem()


class World(RuleBasedStateMachine):
    """Plays clients, engines and the clock against `step`, and keeps its own books."""

    @initialize(depth=st.integers(0, 4), slots=st.integers(1, 3))
    def start(self, depth: int, slots: int) -> None:
        specs = [spec(name, mb, slots=slots, pinned=name == "a") for name, mb in SIZES.items()]
        self.paper = Paper(specs, limits(BUDGET_MB, max_queue_depth=depth, max_wait_s=20.0))
        self.live: dict[int, str] = {}  # ticket -> model, not ended yet
        self.fifo: dict[str, list[int]] = {}  # granted, no slot yet (ended ones too)
        self.slots: dict[str, list[int]] = {}
        self.loading: set[str] = set()
        self.up: set[str] = set()
        self.stopping: set[str] = set()

    # --- what the runtime would do with the effects ---

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Load(spec=found):
                    assert found.id not in self.loading | self.up | self.stopping
                    self.loading.add(found.id)
                case Stop(model_id=model):
                    assert model in self.up | self.loading, "stopped twice, or what never ran"
                    assert not self.fifo.get(model), "a ticket with a lease keeps its model"
                    assert not self.slots.get(model), "stopped while serving"
                    self.up.discard(model)
                    self.loading.discard(model)
                    self.stopping.add(model)
                case Grant(ticket=ticket, model_id=model):
                    assert model in self.up
                    assert self.live[ticket] == model
                    self.fifo.setdefault(model, []).append(ticket)
                case Refuse(ticket=ticket) | Cut(ticket=ticket):
                    assert ticket in self.live, "every ticket ends exactly once"
                    del self.live[ticket]
                case _:
                    pass

    def _feed(self, event: object) -> None:
        self._perform(self.paper.feed(event))

    # --- what may happen ---

    @rule(name=st.sampled_from(sorted(SIZES)), wait=st.none() | st.floats(0.0, 30.0))
    def arrive(self, name: str, wait: float | None) -> None:
        before = len(self.paper.effects)
        # The ticket is live before the answer comes, as in the runtime.
        self.live[self.paper._tickets + 1] = f"{name}.gguf"
        self.paper.arrive(name, deadline=None if wait is None else self.paper.now + wait)
        self._perform(self.paper.effects[before:])

    @rule(data=st.data())
    @precondition(lambda self: self.live)
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[ticket]
        self._feed(Left(ticket))

    @rule(data=st.data(), good=st.booleans())
    @precondition(lambda self: self.loading)
    def load_ends(self, data: st.DataObject, good: bool) -> None:
        model = data.draw(st.sampled_from(sorted(self.loading)))
        self.loading.discard(model)
        if good:
            self.up.add(model)
            self._feed(Loaded(model, self.paper.fleet.instance(model).slots))
        else:
            self._feed(LoadFailed(model, ModelFailed("bad").as_problem()))

    @rule(data=st.data())
    @precondition(lambda self: any(self.fifo.values()))
    def get_slot(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(m for m, fifo in self.fifo.items() if fifo)))
        ticket = self.fifo[model][0]
        if ticket not in self.live:  # It ended in the FIFO: dropped when it comes up.
            self.fifo[model].pop(0)
            self._feed(Released(ticket, served=False))
        elif len(self.slots.setdefault(model, [])) < self.paper.fleet.instance(model).slots:
            self.fifo[model].pop(0)
            self.slots[model].append(ticket)
            self._feed(GotSlot(ticket))

    @rule(data=st.data())
    @precondition(lambda self: any(self.slots.values()))
    def serve(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(m for m, busy in self.slots.items() if busy)))
        ticket = self.slots[model].pop(0)
        served = self.live.pop(ticket, None) is not None
        self._feed(Released(ticket, served=served))

    @rule(data=st.data())
    @precondition(lambda self: self.up | self.loading | self.stopping)
    def die(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.up | self.loading | self.stopping)))
        for models in (self.up, self.loading, self.stopping):
            models.discard(model)
        slots = self.slots.pop(model, [])
        unstarted = data.draw(st.sets(st.sampled_from(slots))) if slots else set()
        for ticket in set(slots) - unstarted:
            self.live.pop(ticket, None)  # failed by the instance
        self.fifo.pop(model, None)  # waits again
        self._feed(Died(model, PROBLEM, frozenset(unstarted)))

    @rule(data=st.data())
    @precondition(lambda self: self.up | self.loading)
    def hang(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.up | self.loading)))
        self.up.discard(model)
        self.loading.discard(model)
        self.stopping.add(model)
        for ticket in self.slots.pop(model, []):
            self.live.pop(ticket, None)  # failed by the instance
        self.fifo.pop(model, None)
        self._feed(Stuck(model, PROBLEM))

    @rule(data=st.data())
    @precondition(lambda self: self.stopping)
    def stop_ends(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.stopping)))
        self.stopping.discard(model)
        self._feed(Stopped(model))

    @rule(seconds=st.floats(0.0, 15.0))
    def time_passes(self, seconds: float) -> None:
        self.paper.now += seconds
        self._feed(Tick())

    # --- what always holds ---

    @invariant()
    def the_ledger_holds(self) -> None:
        if not hasattr(self, "paper"):
            return
        held = self.loading | self.up | self.stopping
        assert self.paper.fleet.held == sum(SIZES[model[0]] for model in held) * MIB
        assert self.paper.fleet.held <= BUDGET_MB * MIB

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "paper"):
            return
        fleet = self.paper.fleet
        waiting = {waiter.ticket for waiter in fleet.waiting}
        leased = {lease.ticket for view in fleet.instances.values() for lease in view.leases}
        assert not waiting & leased
        assert set(self.live) <= waiting | leased, "a live ticket is never lost"
        assert waiting <= set(self.live)

    @invariant()
    def no_fifo_overflows(self) -> None:
        if not hasattr(self, "paper"):
            return
        for model, view in self.paper.fleet.instances.items():
            inside = len(self.fifo.get(model, [])) + len(self.slots.get(model, []))
            assert inside <= 2 * view.slots

    def teardown(self) -> None:
        """Let everything end well: then nobody may be left waiting, and no memory be stuck."""
        if not hasattr(self, "paper"):
            return
        for _ in range(2000):
            if self.loading:
                model = min(self.loading)
                self.loading.discard(model)
                self.up.add(model)
                self._feed(Loaded(model, self.paper.fleet.instance(model).slots))
            elif self.stopping:
                model = min(self.stopping)
                self.stopping.discard(model)
                self._feed(Stopped(model))
            elif any(self.slots.values()):
                model = min(m for m, busy in self.slots.items() if busy)
                ticket = self.slots[model].pop(0)
                served = self.live.pop(ticket, None) is not None
                self._feed(Released(ticket, served=served))
            elif any(self.fifo.values()):
                model = min(m for m, fifo in self.fifo.items() if fifo)
                ticket = self.fifo[model].pop(0)
                if ticket in self.live:
                    self.slots.setdefault(model, []).append(ticket)
                    self._feed(GotSlot(ticket))
                else:
                    self._feed(Released(ticket, served=False))
            elif self.live:
                due = next_deadline(self.paper.fleet, self.paper.now)
                assert due is not None, "somebody waits, and nothing will ever wake the scheduler"
                self.paper.now = max(self.paper.now, due)
                self._feed(Tick())
            else:
                break
        assert not self.live, "a request waits for ever"
        assert all(view.state is not State.QUEUED for view in self.paper.fleet.instances.values())
        self._feed(CutAll())


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
