# SPDX-License-Identifier: GPL-3.0-only
"""Clients, engines and a clock that play against `step`, and books of their own that are held against it.

What happens is decided by `pick`: a number below its argument. So a schedule is a row of numbers, whoever
makes them up, and one that fails can be replayed and made shorter.
"""

from __future__ import annotations

from collections.abc import Callable

from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, catalog_of
from modeld.domain.operation import Operation, OperationKind, OperationState
from modeld.domain.request import Priority, Tenant
from modeld.errors import EngineFailed, ModelFailed
from modeld.memory.devices import DeviceKind, DeviceLimit
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import (
    CutRequest,
    Effect,
    EndOperation,
    Grant,
    RecordDecision,
    Refuse,
    RefuseOperation,
    StartLoad,
    StopInstance,
)
from modeld.scheduler.inputs import (
    CatalogChanged,
    CutAllRequests,
    DevicesChanged,
    Input,
    InstanceDied,
    InstanceLoaded,
    InstanceLoadFailed,
    InstanceStopped,
    InstanceStuck,
    LoadRequested,
    ModelWanted,
    OperationCancelled,
    PinChanged,
    RequestArrived,
    RequestLeft,
    SlotReleased,
    SlotTaken,
    SwitchRequested,
    Tick,
    UnloadRequested,
)
from modeld.scheduler.reservations import pending_bytes, reserved_bytes
from modeld.scheduler.state import Eviction, PendingRequest

Pick = Callable[[int], int]
BUDGET_MB = 100
SIZES = {"a": 30, "b": 45, "c": 60, "d": 90, "e": 120}
NAMES = [f"{name}.gguf" for name in SIZES]
DEAD = EngineFailed("the engine broke").as_problem()
BAD = ModelFailed("bad").as_problem()
PATIENCE_S = 1e9
"""A `max_wait` that never ends a request, so who waits in vain is seen."""


class SchedulerWorld:
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
        self.driver = SchedulerDriver(self._specs(), limits(BUDGET_MB, **terms))
        self.live: dict[int, str] = {}  # ticket -> model, not ended yet
        self.kinds: list[str] = []  # of all problems told
        self.fifo: dict[str, list[int]] = {name: [] for name in NAMES}  # granted, no slot yet
        self.running: dict[str, list[int]] = {name: [] for name in NAMES}
        self.slotless: dict[str, list[int]] = {name: [] for name in NAMES}
        self.slotless_tickets: set[int] = set()
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
        actions = (self.die, self.hang, self.repin, self.preload, self.answer_without_slot, self.others_run)
        actions[self.pick(len(actions))]()

    def arrive(self) -> None:
        name = NAMES[self.pick(len(NAMES))]
        wait = (None, None, 0.0, 3.0, 30.0)[self.pick(5)]
        ticket = self.driver._tickets = self.driver._tickets + 1
        self.live[ticket] = name  # It is live before the answer comes, as in the runtime.
        slotless = self.pick(8) == 7
        if slotless:
            self.slotless_tickets.add(ticket)
        self.feed(
            RequestArrived(
                PendingRequest(
                    ticket=ticket,
                    model_id=name,
                    priority=list(Priority)[self.pick(3)],
                    deadline=None if wait is None else self.driver.now + wait,
                    needs_no_slot=slotless,
                    tenant=Tenant(owner=("", "x", "y")[self.pick(3)], tokens=1 + 1000 * self.pick(4)),
                )
            )
        )

    def leave(self) -> None:
        if self.live:
            ticket = sorted(self.live)[self.pick(len(self.live))]
            del self.live[ticket]
            told = len(self.kinds)
            self.feed(RequestLeft(ticket))
            # The room it leaves may be taken by a pinned model, alongside which another cannot fit (if one
            # that hangs holds memory, not until that comes back).
            crowded = {"does_not_fit", "memory_taken"} | ({"model_failed"} if self._one_hangs() else set())
            assert set(self.kinds[told:]) <= crowded, "a client that leaves ends nobody else"

    def _one_hangs(self) -> bool:
        return any(view.stuck is not None for view in self.driver.fleet.instances.values())

    def load_ends(self) -> None:
        if self.loading:
            model = sorted(self.loading)[self.pick(len(self.loading))]
            self.loading.discard(model)
            if self.pick(4):
                self.up.add(model)
                self.feed(InstanceLoaded(model, self.driver.fleet.instance(model).slots))
            else:
                self.feed(InstanceLoadFailed(model, BAD))

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
                self.feed(SlotTaken(ticket))
            else:  # It ended in the FIFO: dropped when it comes up.
                self.feed(SlotReleased(ticket, served=False))

    def serve(self) -> None:
        busy = [model for model, tickets in self.running.items() if tickets]
        if busy:
            model = busy[self.pick(len(busy))]
            ticket = self.running[model].pop(self.pick(len(self.running[model])))
            served = self.live.pop(ticket, None) is not None
            self.feed(SlotReleased(ticket, served=served))

    def answer_without_slot(self) -> None:
        asked = [model for model, tickets in self.slotless.items() if tickets]
        if asked:
            ticket = self.slotless[asked[self.pick(len(asked))]].pop(0)
            self.feed(SlotReleased(ticket, served=self.live.pop(ticket, None) is not None))

    def stop_ends(self) -> None:
        if self.stopping:
            model = sorted(self.stopping)[self.pick(len(self.stopping))]
            self.stopping.discard(model)
            self.feed(InstanceStopped(model))

    def die(self) -> None:
        there = sorted(self.up | self.loading | self.stopping)
        if there:
            model = there[self.pick(len(there))]
            for models in (self.up, self.loading, self.stopping):
                models.discard(model)
            unstarted = frozenset(ticket for ticket in self.running[model] if self.pick(2))
            self._fail_running(model, unstarted)
            self.feed(InstanceDied(model, DEAD, unstarted))

    def hang(self) -> None:
        there = sorted(self.up | self.loading)
        if there:
            model = there[self.pick(len(there))]
            self.up.discard(model)
            self.loading.discard(model)
            self.stopping.add(model)  # It may come back.
            self._fail_running(model, frozenset())
            self.feed(InstanceStuck(model, DEAD))

    def _fail_running(self, model: str, unstarted: frozenset[int]) -> None:
        for ticket in set(self.running[model]) - unstarted:
            self.live.pop(ticket, None)  # failed by the instance
        for place in (self.running, self.fifo, self.slotless):
            place[model] = []  # what had not begun waits again, or is refused

    def repin(self) -> None:
        name = list(SIZES)[self.pick(len(SIZES))]
        self.pinned ^= {name}
        self.feed(CatalogChanged(catalog_of(self._specs())))

    def preload(self) -> None:
        self.feed(ModelWanted(NAMES[self.pick(4)]))

    def others_run(self) -> None:
        """Other processes take memory of the machine, or give it back."""
        self.left_mb = (BUDGET_MB, 2 * BUDGET_MB, 90, 60, 30, 0)[self.pick(6)]
        sure = self.pick(2) == 0
        self._look(self.left_mb if sure else 2 * BUDGET_MB)

    def _look(self, certain_mb: int) -> None:
        machine = DeviceLimit(
            name="CPU",
            kind=DeviceKind.CPU,
            total=2 * BUDGET_MB * MIB,
            ceiling=self.left_mb * MIB,
            certain=certain_mb * MIB,
        )
        before = self.driver.fleet
        effects = self.feed(DevicesChanged((machine,)))
        going = [it for it in effects if isinstance(it, RecordDecision) and it.kind == "foreign"]
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
        self.feed(LoadRequested(operation=operation, model_id=name, pin=pin, keep_alive_s=keep))

    def unload(self) -> None:
        force = self.pick(3) == 0
        name, operation = self._ask()
        self.feed(UnloadRequested(operation=operation, model_id=name, force=force))

    def switch(self) -> None:
        name, operation = self._ask()
        self.feed(SwitchRequested(operation=operation, model_id=name))

    def _ask(self) -> tuple[str, str]:
        name = NAMES[self.pick(len(NAMES))]
        self._asked += 1
        operation = f"op{self._asked}"
        self.operations[operation] = name
        return name, operation

    def give_up(self) -> None:
        if self.operations:
            self.feed(OperationCancelled(sorted(self.operations)[self.pick(len(self.operations))]))

    def pin(self) -> None:
        self.feed(PinChanged(NAMES[self.pick(len(NAMES))], pinned=self.pick(2) == 0))

    def time_passes(self) -> None:
        due = next_deadline(self.driver.fleet, self.driver.now)
        step = (0.1, 1.0, 4.0, 12.0)[self.pick(4)]
        if due is not None and self.pick(2):
            step = min(60.0, max(0.0, due - self.driver.now))  # the engines may be slower than max_wait
        self.driver.now += step
        self.feed(Tick())

    # --- what the runtime would do with the effects ---

    def feed(self, event: Input) -> list[Effect]:
        before = {reservation.model_id: reservation for reservation in self.driver.fleet.reservations}
        failing = {
            name for name in NAMES if self.driver.now < self.driver.fleet.instance(name).failures.retry_at
        }
        effects = self.driver.feed(event)
        evicted = {
            effect.model_id
            for effect in effects
            if isinstance(effect, RecordDecision) and effect.action == "evict"
        }
        for reservation in self.driver.fleet.reservations:
            earlier = before.get(reservation.model_id)
            if reservation.committed and (earlier is None or not earlier.committed):
                assert reservation.model_id not in failing, "nobody goes for a model that backs off"
                if evicted & set(reservation.victims):
                    self.owed_loads.add(reservation.model_id)
        for effect in effects:
            self._perform(effect)
        self.owed_loads -= {name for name in self.owed_loads if not self._wanted(name)}
        if any(isinstance(effect, StartLoad) for effect in effects):
            fleet = self.driver.fleet
            assert fleet.held <= min(self.left_mb, BUDGET_MB) * MIB, "nothing is loaded into others' memory"
        return effects

    def _wanted(self, name: str) -> bool:
        fleet = self.driver.fleet
        view = fleet.instance(name)
        return (
            fleet.is_wanted(name)
            and self.driver.now >= view.failures.retry_at
            and not self._crowded_out(name)
        )

    def _crowded_out(self, name: str) -> bool:
        """Whether models that were pinned since then leave no room."""
        specs = self.driver.fleet.catalog.models.values()
        pinned = sum(SIZES[spec.id[0]] for spec in specs if spec.pinned and spec.id != name)
        return SIZES[name[0]] + pinned > min(BUDGET_MB, self.left_mb)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case StartLoad(spec=found):
                assert found.id not in self.loading | self.up | self.stopping
                self.loading.add(found.id)
                self.owed_loads.discard(found.id)
            case StopInstance(model_id=model):
                assert model in self.up | self.loading, "stopped twice, or what never ran"
                assert not self.fifo[model], "a ticket with a lease keeps its model"
                assert not self.running[model], "stopped while serving"
                assert not self.slotless[model], "stopped while answering"
                self.up.discard(model)
                self.loading.discard(model)
                self.stopping.add(model)
            case Grant(ticket=ticket, model_id=model):
                assert model in self.up
                assert self.live[ticket] == model
                slotless = ticket in self.slotless_tickets
                (self.slotless if slotless else self.fifo)[model].append(ticket)
            case Refuse(ticket=ticket, problem=problem) | CutRequest(ticket=ticket, problem=problem):
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
        fleet = self.driver.fleet
        held = self.loading | self.up | self.stopping
        assert fleet.held == sum(SIZES[model[0]] for model in held) * MIB
        assert fleet.held <= BUDGET_MB * MIB, "the ledger"
        waiting = {waiter.ticket for waiter in fleet.waiting}
        leased = {lease.request.ticket for view in fleet.instances.values() for lease in view.leases}
        assert not waiting & leased
        assert set(self.live) <= waiting | leased, "a live ticket is never lost"
        assert waiting <= set(self.live)
        for model, view in fleet.instances.items():
            assert len(self.fifo[model]) + len(self.running[model]) <= 2 * view.slots
        assert set(self.operations) == {one.id for one in fleet.operations}, "a live operation is never lost"
        self._check_reservations()

    def _check_reservations(self) -> None:
        fleet = self.driver.fleet
        names = [reservation.model_id for reservation in fleet.reservations]
        assert len(names) == len(set(names)), "one reservation a model"
        assert fleet.free is not None
        assert reserved_bytes(fleet, fleet.reservations) <= (max(0, fleet.free),), (
            "no reservation is short of bytes"
        )
        for place, reservation in enumerate(fleet.reservations):
            assert fleet.instance(reservation.model_id).state is InstanceState.QUEUED
            need = SIZES[reservation.model_id[0]] * MIB
            older = reserved_bytes(fleet, fleet.reservations[:place])
            assert need <= fleet.free - older[0] + pending_bytes(fleet, reservation)[0]
            others = [other for other in fleet.reservations if other is not reservation]
            assert not set(reservation.victims) & {victim for other in others for victim in other.victims}
            for victim in reservation.victims:
                view = fleet.instance(victim)
                assert view.state.holds_memory
                assert view.stopping or not reservation.committed

    # --- the end ---

    def end(self) -> None:
        """Let everything go well from now on: then nobody may wait for ever, nor memory be stuck."""
        self.left_mb = 2 * BUDGET_MB
        self._look(self.left_mb)
        for _ in range(3000):
            if not self._progress():
                if not self.live and not self.operations:
                    break
                due = next_deadline(self.driver.fleet, self.driver.now)
                assert due is not None, "somebody waits, and nothing will ever wake the scheduler"
                assert due < PATIENCE_S / 2, "a deadlock: only max_wait would end it"
                self.driver.now = max(self.driver.now, due)
                self.feed(Tick())
            self.check()
        assert not self.live, "a request waits for ever"
        assert not self.operations, "an operation runs for ever"
        assert not self.owed_loads, "a model was evicted for one that did not load"
        if not self.impatient:
            assert "waited_too_long" not in self.kinds
        views = self.driver.fleet.instances.values()
        assert all(view.state is not InstanceState.QUEUED or view.wanted for view in views)
        self.feed(CutAllRequests())
        assert self.driver.fleet.reservations == ()

    def _progress(self) -> bool:
        if self.loading:
            model = min(self.loading)
            self.loading.discard(model)
            self.up.add(model)
            self.feed(InstanceLoaded(model, self.driver.fleet.instance(model).slots))
        elif self.stopping:
            model = min(self.stopping)
            self.stopping.discard(model)
            self.feed(InstanceStopped(model))
        elif any(self.slotless.values()):
            model = min(model for model, slotless in self.slotless.items() if slotless)
            ticket = self.slotless[model].pop(0)
            self.feed(SlotReleased(ticket, served=self.live.pop(ticket, None) is not None))
        elif any(self.running.values()):
            model = min(model for model, busy in self.running.items() if busy)
            ticket = self.running[model].pop(0)
            self.feed(SlotReleased(ticket, served=self.live.pop(ticket, None) is not None))
        elif any(self.fifo.values()):
            model = min(model for model, fifo in self.fifo.items() if fifo)
            ticket = self.fifo[model].pop(0)
            if ticket in self.live:
                self.running[model].append(ticket)
                self.feed(SlotTaken(ticket))
            else:
                self.feed(SlotReleased(ticket, served=False))
        else:
            return False
        return True


def play(numbers: bytes) -> SchedulerWorld:
    """Play the schedule that these bytes spell: each is a pick, and when they are over, the end.

    Returns: the world after its end. Raises: AssertionError, in whose step something did not hold.
    """
    left = iter(numbers)
    world = SchedulerWorld(lambda below: next(left, 0) % below)
    for _ in range(len(numbers) // 3):
        world.act()
    world.end()
    return world
