# SPDX-License-Identifier: GPL-3.0-only
"""Gates: a model that must make room takes no new requests once its turn is over.

A closed gate is no state of its own: it follows from the reservations of the fleet, and opens by itself
when the reservation is met or nobody wants it any more. Requests behind it keep their arrival time.
"""

from __future__ import annotations

from modeld.domain.instance_state import InstanceState
from modeld.domain.operation import Operation
from modeld.scheduler.state import Fleet, InstanceView, Instant, Reservation


def turn_end(fleet: Fleet, view: InstanceView) -> Instant:
    """Return when a model that was loaded has had its quantum."""
    return view.ready_at + fleet.limits.quantum_s


def turn_is_over(fleet: Fleet, view: InstanceView, now: Instant) -> bool:
    """Whether a ready model has had its quantum.

    Never at the instant in which it became ready, so whoever waited for its load gets a lease.
    """
    return view.state is InstanceState.READY and now > view.ready_at and now >= turn_end(fleet, view)


def gate_closes_at(fleet: Fleet, view: InstanceView) -> Instant | None:
    """Return when the gate of a model closed or will close; None if nobody needs its memory."""
    reservations = [reservation for reservation in fleet.reservations if view.model_id in reservation.victims]
    return min((gate_closed_since(fleet, reservation, view) for reservation in reservations), default=None)


def gate_closed_since(fleet: Fleet, reservation: Reservation, view: InstanceView) -> Instant:
    """Return when the gate of one of a reservation's victims closed, or will close."""
    return max(reservation.since, turn_end(fleet, view))


def must_leave(fleet: Fleet, view: InstanceView, now: Instant) -> bool:
    """Whether an operator wants a ready model to go: then nobody enters.

    Never at the instant in which it became ready, so whoever waited for its load gets a lease.
    """
    return (
        view.state is InstanceState.READY
        and now > view.ready_at
        and fleet.departing_for(view.model_id) is not None
    )


def cut_deadline(fleet: Fleet, one: Operation, model_id: str) -> Instant:
    """Return when streams of a model that leaves for an operation are cut, where that is allowed.

    A model that was being loaded for requests closes when it is ready.
    """
    closed = max(one.departing_since, fleet.instance(model_id).ready_at)
    return closed + fleet.limits.evict_timeout_s


def gate_is_closed(fleet: Fleet, view: InstanceView, now: Instant) -> bool:
    """Whether requests that come now have to wait until another model had its turn, or this one was gone."""
    if must_leave(fleet, view, now):
        return True
    return turn_is_over(fleet, view, now) and gate_closes_at(fleet, view) is not None


def gate_admits(fleet: Fleet, view: InstanceView, arrived: Instant, now: Instant) -> bool:
    """Whether a request that came at `arrived` may be granted.

    Behind a closed gate those may that were there before it closed, until `backlog_time` is over.
    """
    if must_leave(fleet, view, now):
        return False
    if not turn_is_over(fleet, view, now):
        return True
    closed = gate_closes_at(fleet, view)
    return closed is None or (arrived < closed and now < closed + fleet.limits.backlog_time_s)
