# SPDX-License-Identifier: GPL-3.0-only
"""Read this machine's free memory as a device, and the budget that `auto` yields."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from modeld.config.machine import memory_now
from modeld.domain.model import MIB
from modeld.memory.devices import Device, DeviceKind
from modeld.memory.layer_placement import DeviceSpace
from modeld.memory.space import Capacity, capacity_of
from modeld.scheduler.state import SchedulerLimits

AUTO_SHARE = 0.9
"""`auto` leaves a tenth of what is available to everybody else."""


class MachineMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes, within the cgroup's limit where there is one."""

    total: int
    available: int


def memory_of_machine(root: Path = Path("/")) -> MachineMemory:
    """Read what the machine has, and what is available of it. Zeros: not told. Takes less than 1 ms.

    ggml's CPU device reports all memory as free, so it is not asked.
    """
    total, available = memory_now(root)
    return MachineMemory(total=total or 0, available=min(available or 0, total or 0))


def machine_as_device(root: Path = Path("/")) -> Device:
    """Return the machine's memory as a device; its total is 0 where the system does not tell all of it."""
    total, free = memory_now(root)
    known = total is not None and free is not None
    return Device(
        name="CPU",
        kind=DeviceKind.CPU,
        description="memory of the machine",
        total=(total or 0) if known else 0,
        free=free or 0,
    )


def budget_bytes(setting_mb: int | None) -> int | None:
    """Return the budget in bytes for the setting: None for unlimited (0), a share of memory for `auto`."""
    if setting_mb is None:
        return auto_share(memory_of_machine().available)
    return setting_mb * MIB or None


def auto_share(available: int) -> int:
    """Return what `auto` takes of so many bytes that are free, in whole MiB."""
    return int(available * AUTO_SHARE) // MIB * MIB


def sizing_capacity(limits: SchedulerLimits, devices: Sequence[Device]) -> Capacity:
    """Return the space for all models together, by which sizes that are `auto` are chosen.

    The budget less the margin; without a budget, nine tenths of what the machine and its cards have: that
    does not change, what is available does. Of each device as much, less the margin.
    """
    spots = tuple(
        DeviceSpace(
            name=device.name,
            kind=device.kind,
            free=max(0, auto_share(device.total) - limits.margin),
        )
        for device in devices
        if device.total
    )
    if limits.budget is not None:
        return capacity_of(max(0, limits.budget - limits.margin), spots)
    cards = sum(device.total for device in devices if device.kind is DeviceKind.GPU)
    machine = memory_of_machine().total
    return capacity_of(int((machine + cards) * AUTO_SHARE) if machine else None, spots)
