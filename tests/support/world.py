# SPDX-License-Identifier: GPL-3.0-only
"""Clients, engines and a clock that play against `step`, and books of their own that are held against it.

What happens is decided by `pick`: a number below its argument. So a schedule is a row of numbers, whoever
makes them up, and one that fails can be replayed and made shorter.
"""

from __future__ import annotations

from collections.abc import Callable

from support.fleets import Paper, limits, spec

from modeld.domain.instance_state import State
from modeld.domain.model import MIB, make_catalog
from modeld.domain.operation import Operation, OperationKind, OperationState
from modeld.domain.request import Priority, Stake
from modeld.errors import EngineFailed, ModelFailed
from modeld.memory.devices import DeviceKind, DeviceRoom
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import (
    Cut,
    Effect,
    EndOperation,
    Grant,
    Load,
    Refuse,
    RefuseOperation,
    Stop,
    Tell,
)
from modeld.scheduler.inputs import (
    Arrived,
    CatalogChanged,
    CutAll,
    DevicesChanged,
    Died,
    GivenUp,
    GotSlot,
    Input,
    Left,
    LoadAsked,
    Loaded,
    LoadFailed,
    Pinned,
    Released,
    Stopped,
    Stuck,
    SwitchAsked,
    Tick,
    UnloadAsked,
    Wanted,
)
from modeld.scheduler.reservations import owed, pending
from modeld.scheduler.state import Eviction

Pick = Callable[[int], int]
BUDGET_MB = 100
SIZES = {"a": 30, "b": 45, "c": 60, "d": 90, "e": 120}
NAMES = [f"{name}.gguf" for name in SIZES]
DEAD = EngineFailed("the engine broke").as_problem()
BAD = ModelFailed("bad").as_problem()
PATIENCE_S = 1e9
"""A `max_wait` that never ends a request, so who waits in vain is seen."""


class World:
    """One schedule. Call `act` as often as there is something to happen, then `end`."""

    def __init__(self, pick: Pick) -> None:
        self.pick = pick
        self.slots = 1 + pick(2)
        self.pinned = {"a"} if pick(2) else set[str]()
        self.impatient = pick(2) == 1
        terms = {
            "max_queue_depth": pick(4),
            "max_queue_total": (6, 256)[pick(2)],
            "max_wait_s": 20.0 if self.impatient else PATIENCE_S,
            "max_wait_before_drain_s": (0.0, 2.0)[pick(2)],
            "quantum_s": (0.0, 3.0)[pick(2)],
            "backlog_time_s": (0.0, 4.0)[pick(2)],
            "min_residency_s": (0.0, 1.0)[pick(2)],
            "evict_timeout_s": 5.0,
            "cut_streams": pick(4) == 3,
            "eviction": (Eviction.COST, Eviction.COST, Eviction.LRU)[pick(3)],
        }
        self.paper = Paper(self._specs(), limits(BUDGET_MB, **terms))
        self.live: dict[int, str] = {}  # ticket -> model, not ended yet
        self.kinds: list[str] = []  # of all problems told
        self.fifo: dict[str, list[int]] = {name: [] for name in NAMES}  # granted, no slot yet
        self.running: dict[str, list[int]] = {name: [] for name in NAMES}
        self.asides: dict[str, list[int]] = {name: [] for name in NAMES}
        self.aside_tickets: set[int] = set()
        self.loading: set[str] = set()
        self.up: set[str] = set()
        self.stopping: set[str] = set()
        self.owed_loads: set[str] = set()  # something was evicted for them
        self.left_mb = 2 * BUDGET_MB  # by other processes, to models
        self.operations: dict[str, str] = {}  # operation -> model, not ended yet
        self._asked = 0

    def _specs(self) -> list[object]:
        return [spec(name, mb, slots=self.slots, pinned=name in self.pinned) for name, mb in SIZES.items()]

    # --- what may happen ---

    def act(self) -> None:
        """Let one thing happen, if it can."""
        actions = (
            self.arrive,
            self.arrive,
            self.arrive,
            self.leave,
            self.load_ends,
            self.get_slot,
            self.get_slot,
            self.serve,
            self.stop_ends,
            self.time_passes,
            self.time_passes,
            self.rarely,
            self.operate,
        )
        actions[self.pick(len(actions))]()
        self.check()

    def rarely(self) -> None:
        actions = (self.die, self.hang, self.repin, self.preload, self.answer_aside, self.others_run)
        actions[self.pick(len(actions))]()

    def arrive(self) -> None:
        name = NAMES[self.pick(len(NAMES))]
        wait = (None, None, 0.0, 3.0, 30.0)[self.pick(5)]
        ticket = self.paper._tickets = self.paper._tickets + 1
        self.live[ticket] = name  # It is live before the answer comes, as in the runtime.
        aside = self.pick(8) == 7
        if aside:
            self.aside_tickets.add(ticket)
        self.feed(
            Arrived(
                ticket=ticket,
                model_id=name,
                priority=list(Priority)[self.pick(3)],
                deadline=None if wait is None else self.paper.now + wait,
                aside=aside,
                stake=Stake(owner=("", "x", "y")[self.pick(3)], tokens=1 + 1000 * self.pick(4)),
            )
        )

    def leave(self) -> None:
        if self.live:
            ticket = sorted(self.live)[self.pick(len(self.live))]
            del self.live[ticket]
            told = len(self.kinds)
            self.feed(Left(ticket))
            # The room it leaves may be taken by a pinned model, beside which another cannot fit (if one
            # that hangs holds memory, not until that comes back).
            crowded = {"does_not_fit", "memory_taken"} | ({"model_failed"} if self._one_hangs() else set())
            assert set(self.kinds[told:]) <= crowded, "a client that leaves ends nobody else"

    def _one_hangs(self) -> bool:
        return any(view.stuck is not None for view in self.paper.fleet.instances.values())

    def load_ends(self) -> None:
        if self.loading:
            model = sorted(self.loading)[self.pick(len(self.loading))]
            self.loading.discard(model)
            if self.pick(4):
                self.up.add(model)
                self.feed(Loaded(model, self.paper.fleet.instance(model).slots))
            else:
                self.feed(LoadFailed(model, BAD))

    def get_slot(self) -> None:
        able = [
            model
            for model, fifo in self.fifo.items()
            if fifo and (fifo[0] not in self.live or len(self.running[model]) < self.slots)
        ]
        if able:
            model = able[self.pick(len(able))]
            ticket = self.fifo[model].pop(0)
            if ticket in self.live:
                self.running[model].append(ticket)
                self.feed(GotSlot(ticket))
            else:  # It ended in the FIFO: dropped when it comes up.
                self.feed(Released(ticket, served=False))

    def serve(self) -> None:
        busy = [model for model, tickets in self.running.items() if tickets]
        if busy:
            model = busy[self.pick(len(busy))]
            ticket = self.running[model].pop(self.pick(len(self.running[model])))
            served = self.live.pop(ticket, None) is not None
            self.feed(Released(ticket, served=served))

    def answer_aside(self) -> None:
        asked = [model for model, tickets in self.asides.items() if tickets]
        if asked:
            ticket = self.asides[asked[self.pick(len(asked))]].pop(0)
            self.feed(Released(ticket, served=self.live.pop(ticket, None) is not None))

    def stop_ends(self) -> None:
        if self.stopping:
            model = sorted(self.stopping)[self.pick(len(self.stopping))]
            self.stopping.discard(model)
            self.feed(Stopped(model))

    def die(self) -> None:
        there = sorted(self.up | self.loading | self.stopping)
        if there:
            model = there[self.pick(len(there))]
            for models in (self.up, self.loading, self.stopping):
                models.discard(model)
            unstarted = frozenset(ticket for ticket in self.running[model] if self.pick(2))
            self._fail_running(model, unstarted)
            self.feed(Died(model, DEAD, unstarted))

    def hang(self) -> None:
        there = sorted(self.up | self.loading)
        if there:
            model = there[self.pick(len(there))]
            self.up.discard(model)
            self.loading.discard(model)
            self.stopping.add(model)  # It may come back.
            self._fail_running(model, frozenset())
            self.feed(Stuck(model, DEAD))

    def _fail_running(self, model: str, unstarted: frozenset[int]) -> None:
        for ticket in set(self.running[model]) - unstarted:
            self.live.pop(ticket, None)  # failed by the instance
        for place in (self.running, self.fifo, self.asides):
            place[model] = []  # what had not begun waits again, or is refused

    def repin(self) -> None:
        name = list(SIZES)[self.pick(len(SIZES))]
        self.pinned ^= {name}
        self.feed(CatalogChanged(make_catalog(self._specs())))

    def preload(self) -> None:
        self.feed(Wanted(NAMES[self.pick(4)]))

    def others_run(self) -> None:
        """Other processes take memory of the machine, or give it back."""
        self.left_mb = (BUDGET_MB, 2 * BUDGET_MB, 90, 60, 30, 0)[self.pick(6)]
        sure = self.pick(2) == 0
        self._look(self.left_mb if sure else 2 * BUDGET_MB)

    def _look(self, certain_mb: int) -> None:
        machine = DeviceRoom(
            name="CPU",
            kind=DeviceKind.CPU,
            total=2 * BUDGET_MB * MIB,
            ceiling=self.left_mb * MIB,
            certain=certain_mb * MIB,
        )
        before = self.paper.fleet
        effects = self.feed(DevicesChanged((machine,)))
        going = [it for it in effects if isinstance(it, Tell) and it.kind == "foreign"]
        assert not going or before.held > certain_mb * MIB, "a spike makes nobody go"
        for tell in going:
            assert before.instance(tell.model_id).idle, "nobody is cut for it"
            assert not before.catalog.models[tell.model_id].pinned

    def operate(self) -> None:
        (self.load, self.load, self.unload, self.unload, self.switch, self.give_up, self.pin)[self.pick(7)]()

    def load(self) -> None:
        keep = (None, None, -1.0, 0.0, 5.0)[self.pick(5)]
        pin = (None, None, None, True, False)[self.pick(5)]
        name, operation = self._ask()
        self.feed(LoadAsked(operation=operation, model_id=name, pin=pin, keep_alive_s=keep))

    def unload(self) -> None:
        force = self.pick(3) == 0
        name, operation = self._ask()
        self.feed(UnloadAsked(operation=operation, model_id=name, force=force))

    def switch(self) -> None:
        name, operation = self._ask()
        self.feed(SwitchAsked(operation=operation, model_id=name))

    def _ask(self) -> tuple[str, str]:
        name = NAMES[self.pick(len(NAMES))]
        self._asked += 1
        operation = f"op{self._asked}"
        self.operations[operation] = name
        return name, operation

    def give_up(self) -> None:
        if self.operations:
            self.feed(GivenUp(sorted(self.operations)[self.pick(len(self.operations))]))

    def pin(self) -> None:
        self.feed(Pinned(NAMES[self.pick(len(NAMES))], pinned=self.pick(2) == 0))

    def time_passes(self) -> None:
        due = next_deadline(self.paper.fleet, self.paper.now)
        step = (0.1, 1.0, 4.0, 12.0)[self.pick(4)]
        if due is not None and self.pick(2):
            step = min(60.0, max(0.0, due - self.paper.now))  # the engines may be slower than max_wait
        self.paper.now += step
        self.feed(Tick())

    # --- what the runtime would do with the effects ---

    def feed(self, event: Input) -> list[Effect]:
        before = {claim.model_id: claim for claim in self.paper.fleet.claims}
        failing = {
            name for name in NAMES if self.paper.now < self.paper.fleet.instance(name).failures.retry_at
        }
        effects = self.paper.feed(event)
        evicted = {
            effect.model_id for effect in effects if isinstance(effect, Tell) and effect.action == "evict"
        }
        for claim in self.paper.fleet.claims:
            earlier = before.get(claim.model_id)
            if claim.committed and (earlier is None or not earlier.committed):
                assert claim.model_id not in failing, "nobody goes for a model that backs off"
                if evicted & set(claim.victims):
                    self.owed_loads.add(claim.model_id)
        for effect in effects:
            self._perform(effect)
        self.owed_loads -= {name for name in self.owed_loads if not self._wanted(name)}
        if any(isinstance(effect, Load) for effect in effects):
            fleet = self.paper.fleet
            assert fleet.held <= min(self.left_mb, BUDGET_MB) * MIB, "nothing is loaded into others' memory"
        return effects

    def _wanted(self, name: str) -> bool:
        fleet = self.paper.fleet
        view = fleet.instance(name)
        return (
            fleet.is_wanted(name) and self.paper.now >= view.failures.retry_at and not self._crowded_out(name)
        )

    def _crowded_out(self, name: str) -> bool:
        """Whether models that were pinned since then leave no room."""
        specs = self.paper.fleet.catalog.models.values()
        pinned = sum(SIZES[spec.id[0]] for spec in specs if spec.pinned and spec.id != name)
        return SIZES[name[0]] + pinned > min(BUDGET_MB, self.left_mb)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Load(spec=found):
                assert found.id not in self.loading | self.up | self.stopping
                self.loading.add(found.id)
                self.owed_loads.discard(found.id)
            case Stop(model_id=model):
                assert model in self.up | self.loading, "stopped twice, or what never ran"
                assert not self.fifo[model], "a ticket with a lease keeps its model"
                assert not self.running[model], "stopped while serving"
                assert not self.asides[model], "stopped while answering"
                self.up.discard(model)
                self.loading.discard(model)
                self.stopping.add(model)
            case Grant(ticket=ticket, model_id=model):
                assert model in self.up
                assert self.live[ticket] == model
                aside = ticket in self.aside_tickets
                (self.asides if aside else self.fifo)[model].append(ticket)
            case Refuse(ticket=ticket, problem=problem) | Cut(ticket=ticket, problem=problem):
                assert ticket in self.live, "every ticket ends exactly once"
                self.kinds.append(problem.kind)
                del self.live[ticket]
            case RefuseOperation(operation=operation):
                del self.operations[operation]
            case EndOperation(operation=operation, state=state):
                assert operation.id in self.operations, "every operation ends exactly once"
                del self.operations[operation.id]
                if state is OperationState.DONE:
                    self._check_done(operation)
            case _:
                pass

    def _check_done(self, operation: Operation) -> None:
        model = operation.model_id
        if operation.kind is OperationKind.UNLOAD:
            assert model not in self.up | self.loading | self.stopping, "it is out of memory"
        elif operation.kind is OperationKind.LOAD:
            assert model in self.up, "it is ready"
        assert model not in operation.evicted

    # --- what always holds ---

    def check(self) -> None:
        fleet = self.paper.fleet
        held = self.loading | self.up | self.stopping
        assert fleet.held == sum(SIZES[model[0]] for model in held) * MIB
        assert fleet.held <= BUDGET_MB * MIB, "the ledger"
        waiting = {waiter.ticket for waiter in fleet.waiting}
        leased = {lease.ticket for view in fleet.instances.values() for lease in view.leases}
        assert not waiting & leased
        assert set(self.live) <= waiting | leased, "a live ticket is never lost"
        assert waiting <= set(self.live)
        for model, view in fleet.instances.items():
            assert len(self.fifo[model]) + len(self.running[model]) <= 2 * view.slots
        assert set(self.operations) == {one.id for one in fleet.operations}, "a live operation is never lost"
        self._check_claims()

    def _check_claims(self) -> None:
        fleet = self.paper.fleet
        names = [claim.model_id for claim in fleet.claims]
        assert len(names) == len(set(names)), "one claim a model"
        assert fleet.free is not None
        assert owed(fleet, fleet.claims) <= (max(0, fleet.free),), "no claim is short of bytes"
        for place, claim in enumerate(fleet.claims):
            assert fleet.instance(claim.model_id).state is State.QUEUED
            need = SIZES[claim.model_id[0]] * MIB
            older = owed(fleet, fleet.claims[:place])
            assert need <= fleet.free - older[0] + pending(fleet, claim)[0]
            others = [other for other in fleet.claims if other is not claim]
            assert not set(claim.victims) & {victim for other in others for victim in other.victims}
            for victim in claim.victims:
                view = fleet.instance(victim)
                assert view.state.holds_memory
                assert view.stopping or not claim.committed

    # --- the end ---

    def end(self) -> None:
        """Let everything go well from now on: then nobody may wait for ever, nor memory be stuck."""
        self.left_mb = 2 * BUDGET_MB
        self._look(self.left_mb)
        for _ in range(3000):
            if not self._progress():
                if not self.live and not self.operations:
                    break
                due = next_deadline(self.paper.fleet, self.paper.now)
                assert due is not None, "somebody waits, and nothing will ever wake the scheduler"
                assert due < PATIENCE_S / 2, "a deadlock: only max_wait would end it"
                self.paper.now = max(self.paper.now, due)
                self.feed(Tick())
            self.check()
        assert not self.live, "a request waits for ever"
        assert not self.operations, "an operation runs for ever"
        assert not self.owed_loads, "a model was evicted for one that did not load"
        if not self.impatient:
            assert "waited_too_long" not in self.kinds
        views = self.paper.fleet.instances.values()
        assert all(view.state is not State.QUEUED or view.wanted for view in views)
        self.feed(CutAll())
        assert self.paper.fleet.claims == ()

    def _progress(self) -> bool:
        if self.loading:
            model = min(self.loading)
            self.loading.discard(model)
            self.up.add(model)
            self.feed(Loaded(model, self.paper.fleet.instance(model).slots))
        elif self.stopping:
            model = min(self.stopping)
            self.stopping.discard(model)
            self.feed(Stopped(model))
        elif any(self.asides.values()):
            model = min(model for model, asides in self.asides.items() if asides)
            ticket = self.asides[model].pop(0)
            self.feed(Released(ticket, served=self.live.pop(ticket, None) is not None))
        elif any(self.running.values()):
            model = min(model for model, busy in self.running.items() if busy)
            ticket = self.running[model].pop(0)
            self.feed(Released(ticket, served=self.live.pop(ticket, None) is not None))
        elif any(self.fifo.values()):
            model = min(model for model, fifo in self.fifo.items() if fifo)
            ticket = self.fifo[model].pop(0)
            if ticket in self.live:
                self.running[model].append(ticket)
                self.feed(GotSlot(ticket))
            else:
                self.feed(Released(ticket, served=False))
        else:
            return False
        return True


def play(numbers: bytes) -> World:
    """Play the schedule that these bytes spell: each is a pick, and when they are over, the end.

    Returns: the world after its end. Raises: AssertionError, in whose step something did not hold.
    """
    left = iter(numbers)
    world = World(lambda below: next(left, 0) % below)
    for _ in range(len(numbers) // 3):
        world.act()
    world.end()
    return world
