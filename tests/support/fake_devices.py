# SPDX-License-Identifier: GPL-3.0-only
"""A made-up list of devices, in place of those of the machine that runs the tests."""

from __future__ import annotations

import trio
from msgspec.structs import replace

from modeld.domain.model import MIB
from modeld.memory.devices import Device, DeviceKind


class FakeDevices:
    """A source of devices for `runtime.memory.device_watch`; `set` changes what the next look sees."""

    def __init__(self, *devices: Device) -> None:
        self.devices = devices
        self.problem: str | None = None

    def look(self) -> tuple[Device, ...]:
        return self.devices

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await trio.lowlevel.checkpoint()
        task_status.started()

    def set(self, name: str, free_mb: int) -> None:
        self.devices = tuple(
            replace(it, free=free_mb * MIB) if it.name == name else it for it in self.devices
        )


def machine(free_mb: int, total_mb: int = 1024) -> Device:
    """The machine's memory."""
    return Device(name="CPU", kind=DeviceKind.CPU, free=free_mb * MIB, total=total_mb * MIB)


def gpu(place: int, free_mb: int, total_mb: int = 1024) -> Device:
    """A card."""
    return Device(
        name=f"CUDA{place}",
        kind=DeviceKind.GPU,
        description="made up",
        free=free_mb * MIB,
        total=total_mb * MIB,
        id=f"0000:0{place}:00.0",
    )
