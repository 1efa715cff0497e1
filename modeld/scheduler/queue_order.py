# SPDX-License-Identifier: GPL-3.0-only
"""Order waiting requests, and the models they wait for."""

from __future__ import annotations

from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState
from modeld.domain.operation import Operation, OperationKind
from modeld.domain.request import Priority
from modeld.errors import Problem
from modeld.scheduler.effects import CutReason, CutRequest, Effect, Refuse
from modeld.scheduler.fair_queue import fair_order
from modeld.scheduler.state import Fleet, InstanceView, Instant, Lease, PendingRequest

AGING_S = 10.0
"""Waiting this long raises a request by one priority class, so none starves."""
RANK = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


def urgency(waiter: PendingRequest, now: Instant) -> tuple[float, Instant, int]:
    """Order of waiters: by class, raised one class for each `AGING_S` of waiting, then by age.

    Within a class this is the order of arrival: who came earlier was raised at least as often.
    """
    raised = (now - waiter.arrived) // AGING_S
    return (RANK[waiter.priority] - raised, waiter.arrived, waiter.ticket)


def waiting_by_urgency(fleet: Fleet, model_id: str, now: Instant) -> list[PendingRequest]:
    """Return those who wait for a model without a lease, most urgent first, whosever they are."""
    return sorted(fleet.waiters(model_id), key=lambda waiter: urgency(waiter, now))


def waiting_in_order(fleet: Fleet, model_id: str, now: Instant) -> list[PendingRequest]:
    """Return those who wait for a slot of a model without a lease, next first: owners take turns."""
    waiters = [waiter for waiter in waiting_by_urgency(fleet, model_id, now) if not waiter.needs_no_slot]
    return fair_order(fleet, fleet.instance(model_id), waiters)


def queue_order(fleet: Fleet, model_id: str, now: Instant) -> list[int]:
    """Return the tickets that wait for a slot of a model, next first; not those that need none.

    Those in the instance's FIFO come first; of them, as many as there are free slots do not wait.
    """
    view = fleet.instance(model_id)
    free_slots = max(0, view.slots - view.inflight) if view.state is InstanceState.READY else 0
    fifo = [lease.request.ticket for lease in view.leases if lease.waits_for_slot]
    behind = waiting_in_order(fleet, model_id, now)
    return [*fifo[free_slots:], *(waiter.ticket for waiter in behind)]


def demands(fleet: Fleet, now: Instant) -> list[str]:
    """Return the models somebody waits for, by their most urgent request; then those to be preloaded.

    An operation that wants a model counts like a request of class `normal`.
    """
    asked = [(urgency(waiter, now), waiter.model_id) for waiter in fleet.waiting]
    asked += [(_urgency_of(one, now), one.model_id) for one in fleet.operations if one.wants_load]
    names = [model_id for _, model_id in sorted(asked, key=lambda pair: pair[0])]
    names += [view.model_id for view in fleet.instances.values() if view.wanted]
    return list(dict.fromkeys(names))


def oldest_arrival(fleet: Fleet, model_id: str) -> Instant | None:
    """Return when the oldest request or operation that waits for a model came; None if none does."""
    arrivals = [waiter.arrived for waiter in fleet.waiting if waiter.model_id == model_id]
    arrivals += [one.since for one in fleet.loading_for(model_id)]
    return min(arrivals, default=None)


def drain_start(fleet: Fleet, model_id: str) -> Instant | None:
    """Return when busy models are asked to make room for this one; None if nobody waits for it.

    A switch asks at once: the others are to go anyway.
    """
    patience = fleet.limits.max_wait_before_drain_s
    times = [waiter.arrived + patience for waiter in fleet.waiting if waiter.model_id == model_id]
    times += [
        one.since if one.kind is OperationKind.SWITCH else one.since + patience
        for one in fleet.loading_for(model_id)
    ]
    return min(times, default=None)


def _urgency_of(operation: Operation, now: Instant) -> tuple[float, Instant, int]:
    raised = (now - operation.since) // AGING_S
    return (RANK[Priority.NORMAL] - raised, operation.since, 0)


# ----------------------------------------------------------------------
# Finding and ending what requests hold: leases at instances, and places in the queue.


def remove_ended_request(fleet: Fleet, ticket: int) -> Fleet:
    """Take a request that ended out of the queue; a lease stays until its instance lets go."""
    found = find_lease(fleet, ticket)
    if found is not None:
        view, lease = found
        return fleet.with_instance(with_lease(view, replace(lease, closed=True)))
    return replace(fleet, waiting=tuple(waiter for waiter in fleet.waiting if waiter.ticket != ticket))


def cut_leases(
    fleet: Fleet, model_id: str, reason: CutReason, problem: Problem
) -> tuple[Fleet, list[Effect]]:
    """End every request that holds a place at a model, with a legal last event."""
    effects: list[Effect] = []
    for lease in fleet.instance(model_id).leases:
        if not lease.closed:
            effects.append(CutRequest(lease.request.ticket, reason, problem))
            fleet = remove_ended_request(fleet, lease.request.ticket)
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
            if lease.request.ticket == ticket:
                return view, lease
    return None


def with_lease(view: InstanceView, lease: Lease) -> InstanceView:
    """Return the view with this lease in place of the request's earlier one."""
    return replace(
        view,
        leases=tuple(
            lease if other.request.ticket == lease.request.ticket else other for other in view.leases
        ),
    )


# ----------------------------------------------------------------------
# For whom a model is loaded: the name of a key, where all who want it came with the same one. Pure.


def requesting_key(fleet: Fleet, model_id: str) -> str:
    """Return the name of the one key whose requests and operations want a model; empty for several."""
    names = {waiter.tenant.name for waiter in fleet.waiters(model_id)}
    names |= {one.key for one in fleet.loading_for(model_id)}
    return names.pop() if len(names) == 1 else ""
