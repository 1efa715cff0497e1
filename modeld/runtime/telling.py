# SPDX-License-Identifier: GPL-3.0-only
"""What those who wait, or ask for what is not there, are told."""

from __future__ import annotations

from collections.abc import Mapping

from modeld.core.eta import eta
from modeld.core.events import Loading, Queued
from modeld.core.fleet import Fleet, Instant
from modeld.core.models import Catalog
from modeld.core.order import queue_order
from modeld.runtime.ticket import Ticket

SHOWN_NAME = 100
"""Characters of an unknown model's name that an error repeats."""


def tell_progress(fleet: Fleet, tickets: Mapping[int, Ticket], model_id: str, fraction: float) -> None:
    """Tell all who wait for a model how far its load is, in [0, 1]."""
    for waiter in fleet.waiters(model_id):
        tickets[waiter.ticket].put(Loading(fraction))


def tell_positions(fleet: Fleet, tickets: Mapping[int, Ticket], now: Instant) -> None:
    """Tell those whose place in a queue changed their place, and how long it will take (None: unknown)."""
    for model_id in fleet.queued_models():
        for position, ticket_id in enumerate(queue_order(fleet, model_id, now), start=1):
            ticket = tickets.get(ticket_id)
            if ticket is not None and ticket.position != position:
                ticket.position = position
                ticket.put(Queued(position, eta(fleet, model_id, position, now)))


def no_such_model(catalog: Catalog, name: str | None) -> str:
    """Return what a client is told whose model is not there."""
    if name is None:
        return "there is no default model: put a .gguf file into models_dir, or set default_model"
    shown = name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}..."
    return f"there is no model {shown!r}; GET /models lists the {len(catalog.models)} there are"
