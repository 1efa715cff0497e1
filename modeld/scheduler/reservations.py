# SPDX-License-Identifier: GPL-3.0-only
"""Keep memory that is being freed for one model, until that model loads.

The arithmetic of what is still for anybody, and the upkeep of reservations as the world changes. Reservations
are made and met in `scheduler.loading`.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState
from modeld.memory.devices import Amount, add, positive_part, subtract
from modeld.scheduler.capacity import device_bytes, load_requirement
from modeld.scheduler.effects import Outcome
from modeld.scheduler.state import Fleet, Instant, Reservation


def reserved_bytes(fleet: Fleet, reservations: Iterable[Reservation]) -> Amount:
    """Return how many of the free bytes these reservations need besides what their victims will free."""
    total = device_bytes(fleet, ())
    for reservation in reservations:
        total = add(
            total, positive_part(subtract(need(fleet, reservation), pending_bytes(fleet, reservation)))
        )
    return total


def pending_bytes(fleet: Fleet, reservation: Reservation) -> Amount:
    """Return the bytes a reservation's victims still hold."""
    return device_bytes(fleet, (fleet.instance(victim) for victim in reservation.victims))


def victims_of_others(fleet: Fleet, other_than: str = "") -> frozenset[str]:
    """Return the models that go for somebody else than `other_than`."""
    return frozenset(
        victim
        for reservation in fleet.reservations
        if reservation.model_id != other_than
        for victim in reservation.victims
    )


def with_reservation(fleet: Fleet, reservation: Reservation) -> Fleet:
    """Return the fleet with this reservation in place of the model's earlier one, or as the youngest."""
    if any(other.model_id == reservation.model_id for other in fleet.reservations):
        reservations = tuple(
            reservation if other.model_id == reservation.model_id else other for other in fleet.reservations
        )
    else:
        reservations = (*fleet.reservations, reservation)
    return replace(fleet, reservations=reservations)


def without_reservation(fleet: Fleet, model_id: str) -> Fleet:
    """Return the fleet without this model's reservation; what its victims free is for anybody then."""
    return replace(
        fleet,
        reservations=tuple(
            reservation for reservation in fleet.reservations if reservation.model_id != model_id
        ),
    )


def drop_stale(fleet: Fleet, now: Instant) -> Outcome:
    """Rule 3: drop reservations that no demand needs, and victims that are gone, hang or are pinned."""
    if not fleet.reservations:
        return fleet, []
    for reservation in fleet.reservations:
        view = fleet.instance(reservation.model_id)
        if (
            fleet.draining
            or not fleet.is_wanted(reservation.model_id)
            or reservation.model_id not in fleet.catalog.models
            or view.state is not InstanceState.QUEUED
            or now < view.failures.retry_at
        ):
            fleet = without_reservation(fleet, reservation.model_id)
    reservations = tuple(
        replace(
            reservation,
            victims=tuple(victim for victim in reservation.victims if _is_victim(fleet, reservation, victim)),
        )
        for reservation in fleet.reservations
    )
    if reservations != fleet.reservations:
        fleet = replace(fleet, reservations=reservations)
    return fleet, []


def _is_victim(fleet: Fleet, reservation: Reservation, victim: str) -> bool:
    view = fleet.instance(victim)
    if not view.state.holds_memory or view.stuck is not None:
        return False
    return reservation.committed or view.stopping or not fleet.is_pinned(victim)


def need(fleet: Fleet, reservation: Reservation) -> Amount:
    """Return the bytes that a reservation is for."""
    spec = fleet.catalog.models.get(reservation.model_id)
    return (
        device_bytes(fleet, ())
        if spec is None
        else load_requirement(fleet, spec, reservation.placement).amount
    )
