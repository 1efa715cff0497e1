# SPDX-License-Identifier: GPL-3.0-only
"""Makes true what a step decides: what inputs and effects mean to tickets, instances and operations.

Decides nothing, and never waits. What its deeds cause comes back to the scheduler's loop as inputs.
"""

from __future__ import annotations

import trio

from modeld.runtime.instances.instances import Instances
from modeld.runtime.reporting.observer import Observer
from modeld.runtime.scheduling.operations import OperationBook
from modeld.runtime.scheduling.tickets import Tickets
from modeld.scheduler import inputs
from modeld.scheduler.effects import (
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
from modeld.scheduler.inputs import Input
from modeld.scheduler.state import Fleet, Instant


class Performer:
    """Carries each turn of the loop out, in this order: `note`, `perform` for each effect, `tidy`."""

    def __init__(
        self, tickets: Tickets, instances: Instances, operations: OperationBook, observer: Observer
    ) -> None:
        self._tickets = tickets
        self._instances = instances
        self._operations = operations
        self._observer = observer

    def note(self, event: Input, fleet: Fleet, now: Instant) -> None:
        """Note what an input means; `fleet` is that of before its step."""
        match event:
            case inputs.Loaded(model_id=model_id):
                self._note_load(fleet, model_id, now)
            case inputs.LoadFailed(model_id=model_id, problem=problem):
                self._instances.failed(model_id, fleet.catalog.models.get(model_id), problem)
            case inputs.Died(model_id=model_id) | inputs.Stopped(model_id=model_id):
                self._instances.end(model_id)
            case inputs.GotSlot(ticket=ticket_id):
                ticket = self._tickets.inside.get(ticket_id)
                if ticket is not None:
                    self._observer.started(ticket)
            case inputs.Left(ticket=ticket_id) | inputs.Released(ticket=ticket_id):
                self._tickets.go(ticket_id)
            case _:
                pass

    def perform(self, effect: Effect) -> None:
        """Do what the step ordered."""
        match effect:
            case Grant(ticket=ticket_id, model_id=model_id):
                ticket = self._tickets.inside[ticket_id]
                self._observer.granted(ticket, trio.current_time())
                self._instances.there[model_id].grant(ticket)
            case Refuse(ticket=ticket_id, problem=problem):
                self._tickets.inside[ticket_id].fail(problem)
                self._tickets.go(ticket_id)
            case Cut(ticket=ticket_id):
                ticket = self._tickets.inside[ticket_id]
                self._instances.there[ticket.model.id].cut(ticket, effect)
                self._tickets.go(ticket_id)
            case Load():
                self._instances.begin(effect)
            case Stop(model_id=model_id):
                self._instances.there[model_id].stop()
            case SetThreads(model_id=model_id, threads=threads):
                self._instances.there[model_id].set_threads(threads)
            case RefuseOperation():
                self._operations.refuse(effect)
                self._observer.operation_refused(effect)
            case EndOperation():
                self._operations.end(effect)
                self._observer.operated(effect)
            case Tell():
                self._observer.decided(effect)

    def tidy(self, event: Input) -> None:
        """Forget the tickets that an engine took along; the step still knew of them."""
        if isinstance(event, inputs.Died | inputs.Stuck):
            self._tickets.go_ended()

    def _note_load(self, fleet: Fleet, model_id: str, now: Instant) -> None:
        """Tell who waited for a load how much of their time it took."""
        started = fleet.instance(model_id).load_started
        for waiter in fleet.waiters(model_id):
            ticket = self._tickets.inside[waiter.ticket]
            ticket.load_s = now - max(started, ticket.created)
        self._observer.loaded(model_id, now - started)
