# SPDX-License-Identifier: GPL-3.0-only
"""Take in requests and operators' requests, and expose the fleet's state.

Each call becomes an input of the one loop of decisions (`scheduler_loop.py`), and returns what came of it at
once: so a request knows immediately whether it was refused. Nothing here waits, except `run`.

    scheduler -> scheduler_loop -> scheduler.step.step -> effect_runner -> tickets | instances | operations
                      ^--------------------- inputs of instances ------------------+
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import trio
from trio_util import AsyncValue

from modeld.domain.catalog import resolve_model, unsupported_reason
from modeld.domain.daemon_events import EventKind
from modeld.domain.instance_state import InstanceState
from modeld.domain.model import Catalog, EngineKind, ModelSpec
from modeld.domain.operation import OperationStatus
from modeld.domain.request import Order
from modeld.domain.request_events import Loading
from modeld.memory.devices import DeviceLimit
from modeld.runtime.instances.factory import InstanceFactory
from modeld.runtime.instances.instance import Instance
from modeld.runtime.instances.instances import Instances
from modeld.runtime.memory.footprints import MemoryObserver
from modeld.runtime.reporting.observer import SchedulerObserver
from modeld.runtime.scheduling.effect_runner import EffectRunner
from modeld.runtime.scheduling.operations import OperationStore
from modeld.runtime.scheduling.queue_positions import QueuePositions, tell_progress
from modeld.runtime.scheduling.scheduler_loop import SchedulerLoop
from modeld.runtime.scheduling.tickets import Tickets
from modeld.runtime.ticket import Ticket
from modeld.scheduler import inputs
from modeld.scheduler.capacity import cannot_fit_yet
from modeld.scheduler.inputs import Input
from modeld.scheduler.state import Fleet, PendingRequest, SchedulerLimits
from modeld.worker.host import Host

# ----------------------------------------------------------------------
# Decide which preloads the daemon still has to load before it is ready. Pure.


def preloads_under_way(fleet: Fleet, models: Iterable[str]) -> frozenset[str]:
    """Return those of `models` whose first load runs, or begins without anybody's help.

    A preload is no longer under way once it is loaded, withdrawn or failed, or waits for memory that others
    hold. Nothing says when such a wait ends, and the daemon answers for its other models meanwhile.
    """
    return frozenset(model_id for model_id in models if _is_under_way(fleet, model_id))


def _is_under_way(fleet: Fleet, model_id: str) -> bool:
    spec = fleet.catalog.models.get(model_id)
    view = fleet.instance(model_id)
    if spec is None or not view.wanted or view.state is InstanceState.QUEUED:
        return False
    # A first failure that is tried again at once is not one: neither it nor a death sets `while_loading`.
    return not view.failures.while_loading and cannot_fit_yet(fleet, spec) is None


# ----------------------------------------------------------------------

STUCK_S = 10.0
"""Without a sign of life for so long, the daemon is not healthy."""


class Scheduler:
    """The face of the decisions: puts its parts together, and turns calls into inputs.

    Attributes:
      inside: number of tickets that have not ended yet; tasks may wait for it to be 0.
      instances: those that run, by model.
      operations: what operators asked for.
    """

    def __init__(
        self,
        *,
        limits: SchedulerLimits,
        host: Host,
        observer: SchedulerObserver,
        engine: EngineKind = EngineKind.LLAMA,
        fake_script: Callable[[ModelSpec], str] = lambda _spec: "",
        max_stream_backlog: int = 1024 * 1024,
        stall_timeout_s: float = math.inf,
        memory_observer: MemoryObserver | None = None,
    ) -> None:
        """`memory_observer` hears what models really take."""
        launcher = InstanceFactory(
            host,
            engine=engine,
            fake_script=fake_script,
            stall_timeout_s=stall_timeout_s,
            memory_observer=memory_observer,
        )
        self._observer = observer
        self._tickets = Tickets(observer, max_backlog_bytes=max_stream_backlog)
        self._instances = Instances(launcher, feed=self._feed, on_progress=self._progressed)
        self._positions = QueuePositions(observer.queued)
        self.operations = OperationStore(lambda: self.fleet, self._instances.progress_of)
        effect_runner = EffectRunner(self._tickets, self._instances, self.operations, observer)
        self._loop = SchedulerLoop(limits, effect_runner, self._tickets, self._positions)
        self.inside: AsyncValue[int] = self._tickets.count
        self.instances: Mapping[str, Instance] = self._instances.there
        self._preloads: frozenset[str] = frozenset()
        """Models of the start whose first load has not ended."""
        self._leaving: set[str] = set()
        """Models that are gone from the catalogue, and still hold memory."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let time pass for the decisions, and be the parent of all instances.

        Cancellation: ends all instances, and returns when their workers are gone.
        """
        async with trio.open_nursery() as nursery:
            with self._instances.running_in(nursery):
                task_status.started()
                await self._loop.run()

    # --- requests ---------------------------------------------------------------------------------

    def submit(self, order: Order, *, request_id: str) -> Ticket:
        """Take a request in. Its events arrive in the ticket; the caller closes it in the end.

        Raises: ModelNotFound, InvalidRequest for what the model cannot do, ModelFailed, DoesNotFit,
        QueueFull, Draining.
        """
        spec = self.find(order.model)
        problem = unsupported_reason(order.request, spec)
        if problem is not None:
            raise problem.as_error()
        now = trio.current_time()
        ticket = self._tickets.add(order, spec, request_id=request_id, on_close=self._left)
        self._feed(
            inputs.RequestArrived(
                PendingRequest(
                    ticket=ticket.id,
                    model_id=spec.id,
                    priority=order.priority,
                    deadline=None if order.timeout_s is None else now + order.timeout_s,
                    keep_alive_s=order.keep_alive_s,
                    needs_no_slot=order.needs_no_slot,
                    tenant=order.tenant,
                )
            )
        )
        if ticket.problem is not None:
            raise ticket.problem.as_error()
        self._positions.on_arrival(self.fleet, ticket, now)
        instance = self.instances.get(spec.id)
        if instance is not None and instance.state.value is InstanceState.LOADING:
            ticket.put(Loading(instance.progress))
        return ticket

    def find(self, name: str | None) -> ModelSpec:
        """Return the model of an id or alias, the default one for None. Raises: ModelNotFound."""
        return resolve_model(self.fleet.catalog, name)

    # --- operators --------------------------------------------------------------------------------

    def begin(self, event: inputs.Asked) -> OperationStatus:
        """Begin an operation; it may have ended by the time this returns.

        Raises: ModelFailed, DoesNotFit, Conflict, QueueFull, Draining.
        """
        self.operations.begin(event.operation)
        self._observer.operation_started(event)
        self._feed(event)
        return self.operations.begun(event.operation)

    def cancel_operation(self, operation_id: str, *, key: str = "") -> OperationStatus:
        """End an operation. Raises: OperationNotFound."""
        self._feed(inputs.OperationCancelled(operation_id, key))
        return self.operations.get(operation_id)

    def pin(self, model_id: str, *, pinned: bool, key: str = "") -> ModelSpec:
        """Pin a model or let it go; return it as it is then. Raises: ModelNotFound."""
        self._feed(inputs.PinChanged(model_id, pinned, key))
        return self.find(model_id)

    def drain(self) -> None:
        """Take no new requests; those inside go on."""
        reason = "the daemon stops: new requests are refused, those inside may end"
        self._observer.daemon(EventKind.DAEMON_DRAINING, reason, inside=self.inside.value)
        self._feed(inputs.DrainAll())

    def cut_all(self) -> None:
        """End every request with its legal last event."""
        self._feed(inputs.CutAllRequests())

    def preload(self, model_id: str, *, at_start: bool) -> None:
        """Load a model although nobody waits for it; one `at_start` is waited for by `readiness`."""
        self._feed(inputs.ModelWanted(model_id))
        if at_start:
            self._preloads |= {model_id}

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
        self._loop.widen_budget(more)

    def set_devices(self, devices: tuple[DeviceLimit, ...]) -> None:
        """Take over what the devices leave to models."""
        self._feed(inputs.DevicesChanged(devices))

    # --- what others may know ---------------------------------------------------------------------

    @property
    def fleet(self) -> Fleet:
        """The snapshot all decisions are made on."""
        return self._loop.fleet

    @property
    def catalog(self) -> Catalog:
        """The models known now."""
        return self.fleet.catalog

    def model_states(self) -> Mapping[str, InstanceState]:
        """Return the state of every model of the catalogue."""
        return {model_id: self.fleet.instance(model_id).state for model_id in self.fleet.catalog.models}

    def health(self) -> str | None:
        """Return None while the scheduler makes progress and no engine hangs that only a restart ends."""
        silent = trio.current_time() - self._loop.alive_at
        if not self._instances.may_start:
            return "the scheduler does not run"
        for view in self.fleet.instances.values():
            if view.stuck is not None:
                return view.stuck.message
        return None if silent < STUCK_S else f"the scheduler made no progress for {silent:.1f} s"

    def readiness(self) -> str:
        """Return `draining`, `loading` (a preload of the start is under way) or `ready`, which then stays."""
        if self.fleet.draining:
            return "draining"
        self._update_preloads()  # Time alone may have changed something since the last input.
        return "loading" if self._preloads else "ready"

    # --- what comes back -------------------------------------------------------------------------

    def _feed(self, event: Input) -> None:
        self._loop.feed(event)
        self._update_preloads()

    def _update_preloads(self) -> None:
        """Drop those whose first load has ended; once dropped, they stay so."""
        if self._preloads:
            self._preloads = preloads_under_way(self.fleet, self._preloads)

    def _left(self, ticket: Ticket) -> None:
        """A ticket was closed: take it out of its slot or out of the queue."""
        if ticket.id not in self._tickets.inside:
            return
        instance = self.instances.get(ticket.model.id)
        if instance is not None:
            instance.cancel(ticket)
        self._feed(inputs.RequestLeft(ticket.id))

    def _progressed(self, model_id: str, fraction: float) -> None:
        self._observer.progressed(model_id, fraction)
        tell_progress(self.fleet, self._tickets.inside, model_id, fraction)
