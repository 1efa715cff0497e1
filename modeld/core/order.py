# SPDX-License-Identifier: GPL-3.0-only
"""Who comes first: the order of those who wait, and of the models they wait for."""

from __future__ import annotations

from modeld.core.fleet import Fleet, Instant, Waiter
from modeld.core.lifecycle import State
from modeld.core.request import Priority

AGING_S = 10.0
"""Waiting this long raises a request by one priority class, so none starves."""
RANK = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


def urgency(waiter: Waiter, now: Instant) -> tuple[float, Instant, int]:
    """Order of waiters: by class, raised one class for each `AGING_S` of waiting, then by age.

    Within a class this is the order of arrival: who came earlier was raised at least as often.
    """
    raised = (now - waiter.arrived) // AGING_S
    return (RANK[waiter.priority] - raised, waiter.arrived, waiter.ticket)


def waiting_in_order(fleet: Fleet, model_id: str, now: Instant) -> list[Waiter]:
    """Return those who wait for a model without a lease, most urgent first."""
    return sorted(fleet.waiters(model_id), key=lambda waiter: urgency(waiter, now))


def queue_order(fleet: Fleet, model_id: str, now: Instant) -> list[int]:
    """Return the tickets that wait for a slot of a model, next first; not those that need none.

    Those in the instance's FIFO come first; of them, as many as there are free slots do not wait.
    """
    view = fleet.instance(model_id)
    free_slots = max(0, view.slots - view.inflight) if view.state is State.READY else 0
    fifo = [lease.ticket for lease in view.leases if lease.waits_for_slot]
    behind = [waiter for waiter in waiting_in_order(fleet, model_id, now) if not waiter.aside]
    return [*fifo[free_slots:], *(waiter.ticket for waiter in behind)]


def demands(fleet: Fleet, now: Instant) -> list[str]:
    """Return the models somebody waits for, by their most urgent request; then those to be preloaded."""
    ordered = sorted(fleet.waiting, key=lambda waiter: urgency(waiter, now))
    names = [waiter.model_id for waiter in ordered]
    names += [view.model_id for view in fleet.instances.values() if view.wanted]
    return list(dict.fromkeys(names))


def oldest_arrival(fleet: Fleet, model_id: str) -> Instant | None:
    """Return when the oldest request that waits for a model came; None if none does."""
    return min((waiter.arrived for waiter in fleet.waiting if waiter.model_id == model_id), default=None)
