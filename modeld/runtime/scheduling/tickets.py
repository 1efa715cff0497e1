# SPDX-License-Identifier: GPL-3.0-only
"""Track the tickets of all requests inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trio_util import AsyncValue

from modeld.domain.model import ModelSpec
from modeld.domain.request import Order
from modeld.runtime.reporting.observer import SchedulerObserver
from modeld.runtime.ticket import Ticket


class Tickets:
    """Gives out tickets, and keeps each until it ended or its reader left.

    Attributes:
      inside: the tickets that have not ended yet, by id.
      count: how many these are; tasks may wait for it to be 0.
    """

    def __init__(self, observer: SchedulerObserver, *, max_backlog_bytes: int) -> None:
        """`observer` is told of each that comes and goes; a reader that far behind loses its stream."""
        self._observer = observer
        self._max_backlog = max_backlog_bytes
        self._inside: dict[int, Ticket] = {}
        self._next = 1
        self.inside: Mapping[int, Ticket] = self._inside
        self.count: AsyncValue[int] = AsyncValue(0)

    def add(
        self, order: Order, model: ModelSpec, *, request_id: str, on_close: Callable[[Ticket], None]
    ) -> Ticket:
        """Let a request in, which `model` is to serve; `on_close` is called when its reader leaves."""
        ticket = Ticket(
            ticket_id=self._next,
            request_id=request_id,
            order=order,
            model=model,
            max_backlog_bytes=self._max_backlog,
            on_close=on_close,
        )
        self._next += 1
        self._inside[ticket.id] = ticket
        self.count.value = len(self._inside)
        self._observer.arrived(ticket)
        return ticket

    def remove(self, ticket_id: int) -> None:
        """Forget one that ended or whose reader left. Idempotent."""
        ticket = self._inside.pop(ticket_id, None)
        if ticket is not None:
            self.count.value = len(self._inside)
            self._observer.ended(ticket)

    def remove_ended(self) -> None:
        """Forget all whose last event is put in."""
        for ticket in [ticket for ticket in self._inside.values() if ticket.ended]:
            self.remove(ticket.id)
