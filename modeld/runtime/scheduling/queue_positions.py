# SPDX-License-Identifier: GPL-3.0-only
"""Tell waiting requests their place in the queue."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from modeld.domain.request_events import Loading, Queued
from modeld.runtime.ticket import Ticket
from modeld.scheduler.eta import eta
from modeld.scheduler.queue_order import queue_order
from modeld.scheduler.state import Fleet, Instant

TELL_EVERY_S = 0.5
"""Seconds between two events about positions; a request that just arrived is told its place at once."""


def tell_progress(fleet: Fleet, tickets: Mapping[int, Ticket], model_id: str, fraction: float) -> None:
    """Tell all who wait for a model how far its load is, in [0, 1]."""
    for waiter in fleet.waiters(model_id):
        tickets[waiter.ticket].put(Loading(fraction))


class QueuePositions:
    """Tells those who wait their place in the queue, and how long it will take.

    Attributes:
      due: when changes that were not told yet are to be told (infinity: there are none).
    """

    def __init__(self, on_queued: Callable[[Ticket, int, float | None], None]) -> None:
        """`on_queued` hears of each request that has to wait when it comes."""
        self.due = math.inf
        self._told_at = -math.inf
        self._on_queued = on_queued

    def on_arrival(self, fleet: Fleet, ticket: Ticket, now: Instant) -> None:
        """Tell one that just came its place, if it has to wait for a slot."""
        order = queue_order(fleet, ticket.model.id, now)
        if ticket.id not in order:
            return
        position = order.index(ticket.id) + 1
        if ticket.position != position:
            _tell(fleet, ticket, position, now)
        self._on_queued(ticket, position, eta(fleet, ticket.model.id, position, now))

    def refresh(self, fleet: Fleet, tickets: Mapping[int, Ticket], now: Instant) -> None:
        """Something happened: tell those whose place changed, or whose wait can now be estimated."""
        if now < self._told_at + TELL_EVERY_S:
            self.due = self._told_at + TELL_EVERY_S
            return
        self.due = math.inf
        queued = fleet.queued_models()
        if queued:
            self._told_at = now
        for model_id in queued:
            for position, ticket_id in enumerate(queue_order(fleet, model_id, now), start=1):
                ticket = tickets.get(ticket_id)
                if ticket is None:
                    continue
                news = not ticket.eta_known and fleet.instance(model_id).service_s is not None
                if ticket.position != position or news:
                    _tell(fleet, ticket, position, now)


def _tell(fleet: Fleet, ticket: Ticket, position: int, now: Instant) -> None:
    estimate = eta(fleet, ticket.model.id, position, now)
    ticket.position = position
    ticket.eta_known = estimate is not None
    ticket.put(Queued(position, estimate))
