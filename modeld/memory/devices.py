# SPDX-License-Identifier: GPL-3.0-only
"""Memory devices, and how much of each other processes leave to models. Pure.

A look tells what a device has free. What modeld's own workers hold there is added, and the sum is what
models may hold together: all but what others hold. Where models come or go, that is known within bounds
only, and what was known before holds as far as it is within them. Looks are noisy (a page cache breathes, a
compiler runs for a second), so what counts is taken from the last `LOOKS` of them:

    ceiling   the least of them, rounded down to `GRAIN`. It falls with the first look that says so, and rises
              once all of the last looks are at least two grains above it. New loads keep below it.
    certain   the most of them, rounded up to `GRAIN`; None before there are so many looks. Models that
              hold more than this were too large for every one of the last looks, so idle ones give way.

So a spike makes nobody go, and a process that swings by less than a grain changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from modeld.domain.model import MIB

LOOKS = 5
GRAIN = 64 * MIB


class DeviceKind(StrEnum):
    """What a device is, in the words of ggml's device interface."""

    CPU = "cpu"
    """The machine's memory."""
    GPU = "gpu"
    """With memory of its own."""
    IGPU = "igpu"
    """A GPU that uses the machine's memory."""
    ACCELERATOR = "accel"
    """Alongside the CPU, without memory (BLAS)."""
    OTHER = "other"


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device at one moment, bytes."""

    name: str
    """`CPU`, `CUDA0`, `Vulkan1`, ...: what llama.cpp calls it."""
    kind: DeviceKind
    description: str = ""
    free: int = 0
    total: int = 0
    """0: the system does not tell."""
    seen: int = 0
    """Number of the look, where a device is not looked at each time."""
    id: str = ""
    """Of a PCI device, its address: one that two backends offer has the same. Empty: not known."""


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """A look at a device, and what modeld's own models hold there."""

    device: Device
    ours: int = 0
    """Bytes; of a device that cannot tell processes apart, what the ledger holds for it."""
    least: int | None = None
    """Where models came or went about then, what they held at least; `ours` is the most."""


class DeviceState(msgspec.Struct, frozen=True, kw_only=True):
    """One device over the last looks."""

    device: Device
    ours: int = 0
    recent_foreign: tuple[int, ...] = ()
    """Bytes for models by the last looks, newest last."""
    ceiling: int | None = None
    """What models may hold together on it, for new loads; None: nothing is known of it."""

    @property
    def certain(self) -> int | None:
        """What every one of the last looks left to models, at most."""
        return None if len(self.recent_foreign) < LOOKS else -(-max(self.recent_foreign) // GRAIN) * GRAIN

    @property
    def foreign(self) -> int:
        """Bytes that others hold now: other processes, and the kernel."""
        return max(0, self.device.total - self.device.free - self.ours)


class DeviceLimit(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler knows of a device, bytes."""

    name: str
    kind: DeviceKind
    total: int
    ceiling: int
    certain: int | None = None


def observe(before: Iterable[DeviceState], readings: Iterable[DeviceReading]) -> tuple[DeviceState, ...]:
    """Return what is known of the devices after one more look.

    A device that is not found any more has nothing left for models; one that comes back begins again.
    """
    known = {one.device.name: one for one in before}
    found = {reading.device.name: _after(known.get(reading.device.name), reading) for reading in readings}
    gone = [_without(one) for name, one in known.items() if name not in found]
    return (*found.values(), *gone)


def device_limits(devices: Iterable[DeviceState]) -> tuple[DeviceLimit, ...]:
    """Return what the scheduler needs to know, without devices of which nothing is known.

    A GPU of which nothing is known has no room alongside others that tell: its place among them counts.
    """
    known = tuple(devices)
    tells = any(it.ceiling is not None and it.device.kind is not DeviceKind.CPU for it in known)
    return tuple(
        DeviceLimit(
            name=one.device.name,
            kind=one.device.kind,
            total=one.device.total,
            ceiling=one.ceiling or 0,
            certain=one.certain,
        )
        for one in known
        if one.ceiling is not None or (tells and one.device.kind is not DeviceKind.CPU)
    )


def combined(devices: Sequence[DeviceLimit], sizes: Sequence[int]) -> int:
    """Return the sum over devices, without GPUs that use the memory of another one of them."""
    shared = any(device.kind is DeviceKind.CPU for device in devices)
    return sum(
        size
        for device, size in zip(devices, sizes, strict=True)
        if not (shared and device.kind is DeviceKind.IGPU)
    )


def _after(before: DeviceState | None, reading: DeviceReading) -> DeviceState:
    device, ours = reading.device, max(0, reading.ours)
    if before is not None and device.seen and device.seen == before.device.seen:
        return before
    total = max(0, device.total)
    device = msgspec.structs.replace(device, total=total, free=min(max(0, device.free), total))
    if not total:
        return DeviceState(device=device, ours=ours)
    most = min(total, device.free + ours)
    least = min(most, device.free + max(0, ours if reading.least is None else reading.least))
    earlier = () if before is None or not before.device.total else before.recent_foreign
    for_models = min(max(earlier[-1], least), most) if earlier else least
    recent = (*earlier, for_models)[-LOOKS:]
    lowest = min(recent)
    ceiling = None if before is None else before.ceiling
    if ceiling is None or lowest < ceiling or lowest >= ceiling + 2 * GRAIN:
        ceiling = lowest // GRAIN * GRAIN
    return DeviceState(device=device, ours=ours, recent_foreign=recent, ceiling=ceiling)


def _without(gone: DeviceState) -> DeviceState:
    device = msgspec.structs.replace(gone.device, free=0, total=0)
    return DeviceState(device=device, ceiling=None if gone.ceiling is None else 0)


# ----------------------------------------------------------------------
# Bytes of the budget and, where there are GPUs, of each device: rows of numbers of one length. Pure.

Amount = tuple[int, ...]
"""First of the budget; then, where models are placed on devices, of each of those in their order."""


def add(one: Amount, other: Amount) -> Amount:
    """Return the sum, place by place."""
    return tuple(a + b for a, b in zip(one, other, strict=True))


def subtract(one: Amount, other: Amount) -> Amount:
    """Return the difference, place by place."""
    return tuple(a - b for a, b in zip(one, other, strict=True))


def fits_in(room: Amount, need: Amount) -> bool:
    """Whether there is enough of everything."""
    return all(a >= b for a, b in zip(room, need, strict=True))


def positive_part(one: Amount) -> Amount:
    """Return it with 0 for what is below."""
    return tuple(max(0, a) for a in one)


def is_zero(missing: Amount) -> bool:
    """Whether nothing is missing anywhere."""
    return all(a <= 0 for a in missing)
