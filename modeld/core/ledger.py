# SPDX-License-Identifier: GPL-3.0-only
"""The ledger where there are GPUs: what models hold of the budget and of each device, and what is left. Pure.

Without GPUs an amount has one place, that of the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modeld.core.amounts import Amount, minus, plus
from modeld.core.devices import DeviceKind
from modeld.core.fleet import Fleet
from modeld.core.instance_view import InstanceView


def places(fleet: Fleet) -> bool:
    """Whether models are placed on devices: there are GPUs."""
    return any(device.kind is not DeviceKind.CPU for device in fleet.devices)


def amount(fleet: Fleet, view: InstanceView) -> Amount:
    """Return what the ledger holds for an instance: of the budget, and of each device."""
    if not places(fleet):
        return (view.reserved,)
    on: Mapping[str, int] = {} if view.placement is None or not view.reserved else view.placement.bytes
    return (view.reserved, *(on.get(device.name, 0) for device in fleet.devices))


def amounts(fleet: Fleet, views: Iterable[InstanceView]) -> Amount:
    """Return what the ledger holds for all of them."""
    total: Amount = (0,) * (1 + len(fleet.devices)) if places(fleet) else (0,)
    for view in views:
        total = plus(total, amount(fleet, view))
    return total


def room_of(fleet: Fleet) -> Amount | None:
    """Return what is free of the budget and of each device, below 0 where others took some; None: unlimited.

    The margin is kept free of the budget, and of each device.
    """
    free = fleet.free
    if free is None or not places(fleet):
        return None if free is None else (free,)
    left = tuple(device.ceiling - fleet.limits.margin for device in fleet.devices)
    return (free, *minus(left, amounts(fleet, fleet.instances.values())[1:]))
