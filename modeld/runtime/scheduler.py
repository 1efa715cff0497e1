# SPDX-License-Identifier: GPL-3.0-only
"""The one owner of the fleet's state: feeds inputs to the pure `step` and performs its effects.

Everything here runs in the event loop and never waits, except `run`: so nobody needs a lock, and
a request knows at once whether it was refused.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping

import trio
from msgspec.structs import replace
from trio_util import AsyncValue

from modeld.core import inputs
from modeld.core.capability import unfit
from modeld.core.devices import DeviceRoom
from modeld.core.effects import (
    Cut,
    Effect,
    EndOperation,
    Grant,
    Load,
    Refuse,
    RefuseOperation,
    SetThreads,
    Stop,
    Tell,
)
from modeld.core.events import Loading
from modeld.core.fleet import Fleet, Limits
from modeld.core.fleet_events import Kind
from modeld.core.inputs import Input
from modeld.core.lifecycle import State
from modeld.core.models import Catalog, EngineKind, ModelSpec
from modeld.core.operations import OperationStatus
from modeld.core.request import Order
from modeld.core.schedule import step
from modeld.core.wake import next_deadline
from modeld.errors import ModelNotFound, OutOfMemory, Problem
from modeld.runtime.instance import Instance
from modeld.runtime.launch import Launcher
from modeld.runtime.observer import Observer
from modeld.runtime.operations import OperationBook
from modeld.runtime.scales import Gauge
from modeld.runtime.supervise import supervise
from modeld.runtime.telling import Positions, no_such_model, tell_progress
from modeld.runtime.ticket import Ticket
from modeld.worker.host import Host

HEARTBEAT_S = 1.0
"""The scheduler's task shows a sign of life at least so often."""
STUCK_S = 10.0
"""Without a sign of life for so long, the daemon is not healthy."""


class Scheduler:
    """Takes requests in, owns the instances, and decides by `core.schedule` alone.

    Attributes:
      inside: number of tickets that have not ended yet; tasks may wait for it to be 0.
      fleet: the snapshot all decisions are made on.
      operations: what operators asked for.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        host: Host,
        observer: Observer,
        engine: EngineKind = EngineKind.LLAMA,
        fake_script: Callable[[ModelSpec], str] = lambda _spec: "",
        max_stream_backlog: int = 1024 * 1024,
        stall_timeout_s: float = math.inf,
        gauge: Gauge | None = None,
    ) -> None:
        """`gauge` hears what models really take."""
        self.fleet = Fleet(limits=limits)
        self.inside: AsyncValue[int] = AsyncValue(0)
        self.instances: dict[str, Instance] = {}
        self.was_ready = False
        self.operations = OperationBook(lambda: self.fleet, self._progress_of)
        self._launcher = Launcher(
            host, engine=engine, fake_script=fake_script, stall_timeout_s=stall_timeout_s, gauge=gauge
        )
        self._observer = observer
        self._max_backlog = max_stream_backlog
        self._positions = Positions(observer.queued)
        self._tickets: dict[int, Ticket] = {}
        self._leaving: set[str] = set()
        """Models that are gone from the catalogue, and still hold memory."""
        self._next_ticket = 1
        self._submitting: Ticket | None = None
        self._refusal: Problem | None = None
        self._inputs: deque[Input] = deque()
        self._feeding = False
        self._nursery: trio.Nursery | None = None
        self._wake = trio.Event()
        self._sleeping_until = math.inf
        self._due = math.inf
        self._alive_at = trio.current_time()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let time pass for the decisions, and be the parent of all instances.

        Cancellation: ends all instances, and returns when their workers are gone.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                while True:
                    self._wake = trio.Event()
                    now = self._alive_at = trio.current_time()
                    self._sleeping_until = min(now + HEARTBEAT_S, self._due, self._positions.due)
                    with trio.move_on_at(self._sleeping_until):
                        await self._wake.wait()
                    now = trio.current_time()
                    if now >= self._due:
                        self._feed(inputs.Tick())
                    if now >= self._positions.due:
                        self._positions.changed(self.fleet, self._tickets, now)
            finally:
                self._nursery = None

    # --- requests ---------------------------------------------------------------------------------

    def submit(self, order: Order, *, request_id: str) -> Ticket:
        """Take a request in. Its events arrive in the ticket; the caller closes it in the end.

        Raises: ModelNotFound, InvalidRequest for what the model cannot do, ModelFailed, DoesNotFit,
        QueueFull, Draining.
        """
        spec = self.find(order.model)
        problem = unfit(order.request, spec)
        if problem is not None:
            raise problem.as_error()
        now = trio.current_time()
        ticket = Ticket(
            ticket_id=self._next_ticket,
            request_id=request_id,
            order=order,
            model=spec,
            max_backlog_bytes=self._max_backlog,
            on_close=self._left,
        )
        self._next_ticket += 1
        self._tickets[ticket.id] = ticket
        self.inside.value = len(self._tickets)
        self._observer.arrived(ticket)
        self._submitting, self._refusal = ticket, None
        self._feed(
            inputs.Arrived(
                ticket=ticket.id,
                model_id=spec.id,
                priority=order.priority,
                deadline=None if order.timeout_s is None else now + order.timeout_s,
                keep_alive_s=order.keep_alive_s,
                aside=order.aside,
                stake=order.stake,
            )
        )
        self._submitting = None
        if self._refusal is not None:
            raise self._refusal.as_error()
        self._positions.came(self.fleet, ticket, now)
        instance = self.instances.get(spec.id)
        if instance is not None and instance.state.value is State.LOADING:
            ticket.put(Loading(instance.progress))
        return ticket

    def find(self, name: str | None) -> ModelSpec:
        """Return the model of an id or alias, the default one for None. Raises: ModelNotFound."""
        spec = self.fleet.catalog.find(name)
        if spec is None:
            raise ModelNotFound(no_such_model(self.fleet.catalog, name))
        return spec

    # --- operators --------------------------------------------------------------------------------

    def begin(self, event: inputs.Asked) -> OperationStatus:
        """Begin an operation; it may have ended by the time this returns.

        Raises: ModelFailed, DoesNotFit, Conflict, QueueFull, Draining.
        """
        self._refusal = None
        self.operations.begin(event.operation)
        self._observer.operation_started(event)
        self._feed(event)
        if self._refusal is not None:
            raise self._refusal.as_error()
        return self.operations.get(event.operation)

    def give_up(self, operation_id: str, *, key: str = "") -> OperationStatus:
        """End an operation. Raises: OperationNotFound."""
        self._feed(inputs.GivenUp(operation_id, key))
        return self.operations.get(operation_id)

    def pin(self, model_id: str, *, pinned: bool, key: str = "") -> ModelSpec:
        """Pin a model or let it go; return it as it is then. Raises: ModelNotFound."""
        self._feed(inputs.Pinned(model_id, pinned, key))
        return self.find(model_id)

    def drain(self) -> None:
        """Take no new requests; those inside go on."""
        reason = "the daemon stops: new requests are refused, those inside may end"
        self._observer.daemon(Kind.DAEMON_DRAINING, reason, inside=len(self._tickets))
        self._feed(inputs.Drain())

    def cut_all(self) -> None:
        """End every request with its legal last event."""
        self._feed(inputs.CutAll())

    def preload(self, model_id: str) -> None:
        """Load a model although nobody waits for it."""
        self._feed(inputs.Wanted(model_id))

    def set_catalog(self, catalog: Catalog) -> None:
        """Take over a new catalogue, and forget models that are gone and hold nothing."""
        self._leaving.update(self.fleet.catalog.models)
        self._feed(inputs.CatalogChanged(catalog))
        self._leaving.difference_update(self.fleet.catalog.models)
        for model_id in self._leaving.difference(self.fleet.instances):
            self._observer.forget(model_id)
        self._leaving.intersection_update(self.fleet.instances)

    def widen_budget(self, more: int) -> None:
        """Add bytes to the budget, before anything is loaded."""
        limits = self.fleet.limits
        if limits.budget is not None:
            self.fleet = replace(self.fleet, limits=replace(limits, budget=limits.budget + more))

    def set_devices(self, devices: tuple[DeviceRoom, ...]) -> None:
        """Take over what the devices leave to models."""
        self._feed(inputs.DevicesChanged(devices))

    # --- what others may know ---------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """The models known now."""
        return self.fleet.catalog

    def model_states(self) -> Mapping[str, State]:
        """Return the state of every model of the catalogue."""
        return {model_id: self.fleet.instance(model_id).state for model_id in self.fleet.catalog.models}

    def health(self) -> str | None:
        """Return None while the scheduler makes progress and no engine hangs that only a restart ends."""
        silent = trio.current_time() - self._alive_at
        if self._nursery is None:
            return "the scheduler does not run"
        for view in self.fleet.instances.values():
            if view.stuck is not None:
                return view.stuck.message
        return None if silent < STUCK_S else f"the scheduler made no progress for {silent:.1f} s"

    def readiness(self) -> str:
        """Return `draining`, `ready` (an instance became ready at least once) or `loading`."""
        if self.fleet.draining:
            return "draining"
        return "ready" if self.was_ready else "loading"

    # --- the one loop of inputs and effects -------------------------------------------------------

    def _feed(self, event: Input) -> None:
        """Take in an input; inputs that its effects cause are taken in after it."""
        self._inputs.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._inputs:
                self._take(self._inputs.popleft())
        finally:
            self._feeding = False
        # Kept, since a moment that is reached is none of the future any more, whoever looks then.
        due = next_deadline(self.fleet, trio.current_time())
        self._due = math.inf if due is None else due
        if min(self._due, self._positions.due) < self._sleeping_until:
            self._wake.set()

    def _take(self, event: Input) -> None:
        now = trio.current_time()
        self._before(event, now)
        self.fleet, effects = step(self.fleet, event, now)
        for effect in effects:
            self._perform(effect)
        self._after(event)
        self._positions.changed(self.fleet, self._tickets, now)

    def _before(self, event: Input, now: float) -> None:
        """Note in the tickets what the input means to them."""
        match event:
            case inputs.Loaded(model_id=model_id):
                self.was_ready = True
                started = self.fleet.instance(model_id).load_started
                for waiter in self.fleet.waiters(model_id):
                    ticket = self._tickets[waiter.ticket]
                    ticket.load_s = now - max(started, ticket.created)
                self._observer.loaded(model_id, now - started)
            case inputs.LoadFailed(model_id=model_id, problem=problem):
                del self.instances[model_id]
                spec = self.fleet.catalog.models.get(model_id)
                if spec is not None and problem.kind == OutOfMemory.kind:
                    self._launcher.out_of_memory(spec)
            case inputs.Died(model_id=model_id):
                del self.instances[model_id]
            case inputs.Stopped(model_id=model_id):
                del self.instances[model_id]
            case inputs.GotSlot(ticket=ticket_id):
                if ticket_id in self._tickets:
                    self._observer.started(self._tickets[ticket_id])
            case inputs.Left(ticket=ticket_id) | inputs.Released(ticket=ticket_id):
                self._forget(ticket_id)
            case _:
                pass

    def _after(self, event: Input) -> None:
        if isinstance(event, inputs.Died | inputs.Stuck):
            for ticket in [ticket for ticket in self._tickets.values() if ticket.ended]:
                self._forget(ticket.id)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Grant(ticket=ticket_id, model_id=model_id):
                self._observer.granted(self._tickets[ticket_id], trio.current_time())
                self.instances[model_id].grant(self._tickets[ticket_id])
            case Refuse(ticket=ticket_id, problem=problem):
                self._refuse(self._tickets[ticket_id], problem)
            case Cut(ticket=ticket_id):
                ticket = self._tickets[ticket_id]
                self.instances[ticket.model.id].cut(ticket, effect)
                self._forget(ticket_id)
            case Load():
                self._load(effect)
            case Stop(model_id=model_id):
                self.instances[model_id].stop()
            case SetThreads(model_id=model_id, threads=threads):
                self.instances[model_id].set_threads(threads)
            case RefuseOperation(operation=operation_id):
                self._refusal = effect.problem
                self.operations.refuse(operation_id)
                self._observer.operation_refused(effect)
            case EndOperation():
                self.operations.end(effect)
                self._observer.operated(effect)
            case Tell():
                self._observer.decided(effect)

    def _load(self, load: Load) -> None:
        if self._nursery is None:
            raise RuntimeError("the scheduler does not run")
        instance = self._launcher.instance(load, feed=self._feed, on_progress=self._progressed)
        self.instances[load.spec.id] = instance
        self._nursery.start_soon(supervise, instance, self._feed)

    def _refuse(self, ticket: Ticket, problem: Problem) -> None:
        if ticket is self._submitting:
            self._refusal = problem
        ticket.fail(problem)
        self._forget(ticket.id)

    def _left(self, ticket: Ticket) -> None:
        """A ticket was closed: take it out of its slot or out of the queue."""
        if ticket.id not in self._tickets:
            return
        instance = self.instances.get(ticket.model.id)
        if instance is not None:
            instance.cancel(ticket)
        self._feed(inputs.Left(ticket.id))

    def _progress_of(self, model_id: str) -> float:
        instance = self.instances.get(model_id)
        return 0.0 if instance is None else instance.progress

    def _progressed(self, model_id: str, fraction: float) -> None:
        self._observer.progressed(model_id, fraction)
        tell_progress(self.fleet, self._tickets, model_id, fraction)

    def _forget(self, ticket_id: int) -> None:
        ticket = self._tickets.pop(ticket_id, None)
        if ticket is not None:
            self.inside.value = len(self._tickets)
            self._observer.ended(ticket)
