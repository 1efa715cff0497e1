# SPDX-License-Identifier: GPL-3.0-only
"""Estimate how long a request will wait: for `Queued` events, refusals and `Retry-After`.

Estimates, but each part is a measurement: the model's average service time and its last load.
"""

from __future__ import annotations

import math

from modeld.domain.instance_state import InstanceState
from modeld.scheduler.draining import gate_is_closed, turn_end
from modeld.scheduler.queue_order import drain_start
from modeld.scheduler.state import Fleet, InstanceView, Instant


def eta(fleet: Fleet, model_id: str, position: int, now: Instant) -> float | None:
    """Estimate the seconds until the request at `position` (from 1) of a queue gets a slot.

    The time until the model can serve, then one average service time for each round of its slots;
    the first round after a load need not wait. None while no request of this model has been served.
    """
    view = fleet.instance(model_id)
    if view.service_s is None:
        return None
    slots = max(1, view.slots)
    in_service = view.state is InstanceState.READY and not gate_is_closed(fleet, view, now)
    rounds = math.ceil(position / slots) if in_service else (position - 1) // slots
    return seconds_until_ready(fleet, model_id, now) + rounds * view.service_s


def seconds_until_ready(fleet: Fleet, model_id: str, now: Instant) -> float:
    """Estimate the seconds until a model takes requests: 0 if it does, else what is left of its load.

    If it needs room that is not free: the time until busy models are asked to go, the rest of their
    turn, and one of their service times on top; if it has to make room itself, also the load of the other.
    """
    view = fleet.instance(model_id)
    match view.state:
        case InstanceState.READY if not gate_is_closed(fleet, view, now):
            return 0.0
        case InstanceState.LOADING:
            return max(0.0, view.load_s - (now - view.load_started))
        case InstanceState.READY:
            claimant = next(
                (
                    reservation.model_id
                    for reservation in fleet.reservations
                    if model_id in reservation.victims
                ),
                None,
            )
            if claimant is None:  # An operator unloads it.
                return (view.service_s or 0.0) + view.load_s
            other = fleet.instance(claimant)
            return (view.service_s or 0.0) + other.load_s + fleet.limits.quantum_s + view.load_s
        case InstanceState.QUEUED:
            return max(_room_in(fleet, view, now), view.failures.retry_at - now) + view.load_s
        case _:
            return max(0.0, view.failures.retry_at - now) + view.load_s


def retry_after(fleet: Fleet, model_id: str, now: Instant) -> int:
    """Return whole seconds after which a place in a model's queue is likely.

    When the model can serve, a place comes free once per service time and slot. 1 while nothing of
    this model was measured.
    """
    view = fleet.instance(model_id)
    if view.service_s is None:
        return 1
    return max(1, math.ceil(seconds_until_ready(fleet, model_id, now) + view.service_s / max(1, view.slots)))


def retry_after_any(fleet: Fleet) -> int:
    """Return whole seconds after which a place in the common queue is likely, by the rates of service."""
    rate = sum(
        view.slots / view.service_s
        for view in fleet.instances.values()
        if view.service_s and view.state is InstanceState.READY
    )
    return max(1, math.ceil(1 / rate)) if rate else 1


def _room_in(fleet: Fleet, view: InstanceView, now: Instant) -> float:
    reservation = next(
        (reservation for reservation in fleet.reservations if reservation.model_id == view.model_id), None
    )
    if reservation is None:
        drains = drain_start(fleet, view.model_id)
        asked_in = 0.0 if drains is None else max(0.0, drains - now)
        holders = [one for one in fleet.instances.values() if one.reserved]
    else:
        asked_in = 0.0
        holders = [fleet.instance(victim) for victim in reservation.victims]
    if reservation is not None and reservation.committed:
        return 0.0
    waits = [
        max(asked_in, turn_end(fleet, one) - now) + (0.0 if one.idle else one.service_s or 0.0)
        for one in holders
    ]
    return (max if reservation is not None else min)(waits, default=asked_in)
