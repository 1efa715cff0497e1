# SPDX-License-Identifier: GPL-3.0-only
"""Perform the scheduler's effects on tickets, instances and operations.

Decides nothing, and never waits. What its deeds cause comes back to the scheduler's loop as inputs.
"""

from __future__ import annotations

import trio

from modeld.runtime.instances.instances import Instances
from modeld.runtime.reporting.observer import SchedulerObserver
from modeld.runtime.scheduling.operations import OperationStore
from modeld.runtime.scheduling.tickets import Tickets
from modeld.scheduler import inputs
from modeld.scheduler.effects import (
    ChangeThreads,
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
from modeld.scheduler.inputs import Input
from modeld.scheduler.state import Fleet, Instant


class EffectRunner:
    """Perform each turn of the loop: `before_step`, `run_effects` for each effect, `after_step`."""

    def __init__(
        self, tickets: Tickets, instances: Instances, operations: OperationStore, observer: SchedulerObserver
    ) -> None:
        self._tickets = tickets
        self._instances = instances
        self._operations = operations
        self._observer = observer

    def before_step(self, event: Input, fleet: Fleet, now: Instant) -> None:
        """Note what an input means; `fleet` is that of before its step."""
        match event:
            case inputs.InstanceLoaded(model_id=model_id):
                self._note_load(fleet, model_id, now)
            case inputs.InstanceLoadFailed(model_id=model_id, problem=problem):
                self._instances.failed(model_id, fleet.catalog.models.get(model_id), problem)
            case inputs.InstanceDied(model_id=model_id) | inputs.InstanceStopped(model_id=model_id):
                self._instances.end(model_id)
            case inputs.SlotTaken(ticket=ticket_id):
                ticket = self._tickets.inside.get(ticket_id)
                if ticket is not None:
                    self._observer.started(ticket)
            case inputs.RequestLeft(ticket=ticket_id) | inputs.SlotReleased(ticket=ticket_id):
                self._tickets.remove(ticket_id)
            case _:
                pass

    def run_effects(self, effect: Effect) -> None:
        """Do what the step ordered."""
        match effect:
            case Grant(ticket=ticket_id, model_id=model_id):
                ticket = self._tickets.inside[ticket_id]
                self._observer.granted(ticket, trio.current_time())
                self._instances.there[model_id].grant(ticket)
            case Refuse(ticket=ticket_id, problem=problem):
                self._tickets.inside[ticket_id].fail(problem)
                self._tickets.remove(ticket_id)
            case CutRequest(ticket=ticket_id):
                ticket = self._tickets.inside[ticket_id]
                self._instances.there[ticket.model.id].cut(ticket, effect)
                self._tickets.remove(ticket_id)
            case StartLoad():
                self._instances.start(effect)
            case StopInstance(model_id=model_id):
                self._instances.there[model_id].stop()
            case ChangeThreads(model_id=model_id, threads=threads):
                self._instances.there[model_id].set_threads(threads)
            case RefuseOperation():
                self._operations.refuse(effect)
                self._observer.operation_refused(effect)
            case EndOperation():
                self._operations.end(effect)
                self._observer.operated(effect)
            case RecordDecision():
                self._observer.decided(effect)

    def after_step(self, event: Input) -> None:
        """Forget the tickets that an engine took along; the step still knew of them."""
        if isinstance(event, inputs.InstanceDied | inputs.InstanceStuck):
            self._tickets.remove_ended()

    def _note_load(self, fleet: Fleet, model_id: str, now: Instant) -> None:
        """Tell who waited for a load how much of their time it took."""
        started = fleet.instance(model_id).load_started
        for waiter in fleet.waiters(model_id):
            ticket = self._tickets.inside[waiter.ticket]
            ticket.load_s = now - max(started, ticket.created)
        self._observer.loaded(model_id, now - started)
