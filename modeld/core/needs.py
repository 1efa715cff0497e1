# SPDX-License-Identifier: GPL-3.0-only
"""What a model needs to be loaded, now or once others have gone. Pure.

Where there are no GPUs that is its footprint, of the budget. Else it is a place as well (`core.spread`), and
so many bytes of each device: a model goes where it fits now; if that is nowhere, room is made at the place
where that costs least. Layers stay with the CPU unasked only where no eviction could make room for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from modeld.core.amounts import Amount, minus
from modeld.core.fleet import Fleet
from modeld.core.ledger import amount, places
from modeld.core.models import ModelSpec
from modeld.core.spread import Parts, Placement, Spot, choices, fits, parts_of, place


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a load takes, and where."""

    amount: Amount
    placement: Placement | None = None
    """None: llama.cpp's own choice."""


def need_of(fleet: Fleet, spec: ModelSpec, placement: Placement | None) -> Need:
    """Return what a model takes at this place."""
    if not places(fleet):
        return Need(amount=(spec.footprint.total,))
    if placement is None:
        return Need(amount=(spec.footprint.total, *(0 for _ in fleet.devices)))
    on = (placement.bytes.get(device.name, 0) for device in fleet.devices)
    return Need(amount=(placement.total, *on), placement=placement)


def fitting(
    fleet: Fleet, spec: ModelSpec, room: Amount | None, prefer: Placement | None = None
) -> Need | None:
    """Return how a model fits into this room (None: the budget is unlimited); None if it does not.

    `prefer`: the place that room was made at, if it was. Without a budget nothing is refused: what finds
    no place is left to llama.cpp.
    """
    if not places(fleet):
        need = need_of(fleet, spec, None)
        return need if room is None or need.amount[0] <= room[0] else None
    if room is None:
        spots, total = _spots(fleet, _on_devices(fleet)), None
    else:
        spots, total = _spots(fleet, room[1:]), room[0]
    if prefer is not None and fits(prefer, spots, total):
        return need_of(fleet, spec, prefer)
    parts = parts_of(spec)
    found = place(parts, spots, spec.options, total, partly=room is None or not _whole(fleet, spec, parts))
    if found is None and room is not None:
        return None
    return need_of(fleet, spec, found)


def goals(fleet: Fleet, spec: ModelSpec) -> Sequence[Need]:
    """Return the places at which room could be made for a model, the best first. Empty: it fits nowhere."""
    if not places(fleet):
        return (need_of(fleet, spec, None),)
    parts = parts_of(spec)
    spots, total = _emptied(fleet, spec.id)
    found = [it for it in choices(parts, spots, spec.options, partly=False) if fits(it, spots, total)]
    if not found:
        partly = place(parts, spots, spec.options, total)
        found = [] if partly is None else [partly]
    return [need_of(fleet, spec, it) for it in found]


def fits_empty(fleet: Fleet, spec: ModelSpec, *, without_others: bool) -> bool:
    """Whether a model finds a place when everything goes that may; also what hangs, and what others hold."""
    spots, total = _emptied(fleet, spec.id, without_others=without_others)
    return place(parts_of(spec), spots, spec.options, total) is not None


def _whole(fleet: Fleet, spec: ModelSpec, parts: Parts) -> bool:
    """Whether all layers could be on GPUs if all went that may."""
    spots, total = _emptied(fleet, spec.id)
    return place(parts, spots, spec.options, total, partly=False) is not None


def _emptied(
    fleet: Fleet, model_id: str, *, without_others: bool = False
) -> tuple[tuple[Spot, ...], int | None]:
    """Return the devices' room, and that of the budget, beside what stays whatever happens."""
    stays = [
        amount(fleet, view)
        for view in fleet.instances.values()
        if view.reserved
        and view.model_id != model_id
        and (fleet.is_pinned(view.model_id) or (view.stuck is not None and not without_others))
    ]
    margin = fleet.limits.margin
    rooms: Amount = tuple(
        (device.total if without_others else device.ceiling) - margin for device in fleet.devices
    )
    for held in stays:
        rooms = minus(rooms, held[1:])
    budget = fleet.limits.budget if without_others else fleet.budget
    total = None if budget is None else budget - margin - sum(held[0] for held in stays)
    return _spots(fleet, rooms), total


def _on_devices(fleet: Fleet) -> Amount:
    rooms: Amount = tuple(device.ceiling - fleet.limits.margin for device in fleet.devices)
    for view in fleet.instances.values():
        rooms = minus(rooms, amount(fleet, view)[1:])
    return rooms


def _spots(fleet: Fleet, rooms: Iterable[int]) -> tuple[Spot, ...]:
    return tuple(
        Spot(name=device.name, kind=device.kind, free=room)
        for device, room in zip(fleet.devices, rooms, strict=True)
    )
