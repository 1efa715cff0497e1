# SPDX-License-Identifier: GPL-3.0-only
"""Finding and ending what requests hold: leases at instances, and places in the queue."""

from __future__ import annotations

from msgspec.structs import replace

from modeld.core.effects import Cut, CutReason, Effect, Refuse
from modeld.core.fleet import Fleet
from modeld.core.instance_view import InstanceView, Lease
from modeld.errors import Problem


def close(fleet: Fleet, ticket: int) -> Fleet:
    """Take a request that ended out of the queue; a lease stays until its instance lets go."""
    found = find_lease(fleet, ticket)
    if found is not None:
        view, lease = found
        return fleet.having(with_lease(view, replace(lease, closed=True)))
    return replace(fleet, waiting=tuple(waiter for waiter in fleet.waiting if waiter.ticket != ticket))


def cut_leases(
    fleet: Fleet, model_id: str, reason: CutReason, problem: Problem
) -> tuple[Fleet, list[Effect]]:
    """End every request that holds a place at a model, with a legal last event."""
    effects: list[Effect] = []
    for lease in fleet.instance(model_id).leases:
        if not lease.closed:
            effects.append(Cut(lease.ticket, reason, problem))
            fleet = close(fleet, lease.ticket)
    return fleet, effects


def refuse_waiters(fleet: Fleet, model_id: str, problem: Problem) -> tuple[Fleet, list[Effect]]:
    """End every request that waits for a model without a place at it."""
    effects: list[Effect] = [Refuse(waiter.ticket, problem) for waiter in fleet.waiters(model_id)]
    waiting = tuple(waiter for waiter in fleet.waiting if waiter.model_id != model_id)
    return replace(fleet, waiting=waiting), effects


def find_lease(fleet: Fleet, ticket: int) -> tuple[InstanceView, Lease] | None:
    """Return the lease of a request, and where it is; None if it has none."""
    for view in fleet.instances.values():
        for lease in view.leases:
            if lease.ticket == ticket:
                return view, lease
    return None


def with_lease(view: InstanceView, lease: Lease) -> InstanceView:
    """Return the view with this lease in place of the request's earlier one."""
    return replace(
        view, leases=tuple(lease if other.ticket == lease.ticket else other for other in view.leases)
    )
