# SPDX-License-Identifier: GPL-3.0-only
"""Poll device memory, and tell the scheduler when other processes take or return some.

The machine's memory is read in the event loop: two files of /proc and those of the cgroup, and one of each
worker, less than 1 ms every `LOOK_S`. GPUs are asked in a process of their own (`worker.device_child`), every
`GPU_LOOK_S`, and only where llama.cpp's library has a backend for any. What follows from a look is decided by
`memory.devices` and `scheduler.memory_pressure`; the scheduler hears of it only where the budget changes.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec
import structlog
import trio
from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, Isolation
from modeld.domain.status import DeviceStatus
from modeld.engine.llama.native.backends import other_backends
from modeld.errors import ModelFailed, Problem
from modeld.memory.devices import Device, DeviceKind, DeviceReading, DeviceState, device_limits, observe
from modeld.runtime.memory.machine import machine_as_device
from modeld.runtime.scheduling.scheduler import Scheduler
from modeld.scheduler.capacity import places_on_devices
from modeld.scheduler.state import Fleet
from modeld.worker.oneshot import run_oneshot
from modeld.worker.process_stats import anonymous_bytes

# ----------------------------------------------------------------------
# Asks ggml's devices for their memory, in a process of its own (`worker.device_child`).
#
# The drivers of GPUs are loaded for it, which take memory there and may crash: in the daemon neither is
# wanted.

WITHIN_S = 20.0
"""Seconds after which a look is given up. The driver of a GPU that slept takes some to wake it."""


async def read_devices(within_s: float = WITHIN_S) -> tuple[Device, ...] | Problem:
    """Ask a child process for all devices. Never raises for what a driver does.

    Cancellation: kills the child, and waits until it is gone.
    """
    await trio.lowlevel.checkpoint()
    try:
        said = await run_oneshot("devices", "modeld.worker.device_child", b"", within_s)
    except OSError as error:
        return _look_failed(f"no process could be started: {error.strerror or error}")
    if not said.in_time:
        return _look_failed(f"it did not end within {within_s:g} s")
    try:
        return msgspec.json.decode(said.reply, type=tuple[Device, ...])
    except msgspec.DecodeError:
        return _look_failed(said.end)


def _look_failed(why: str) -> Problem:
    return ModelFailed(f"the look at the devices' memory failed: {why}").as_problem()


# ----------------------------------------------------------------------

LOOK_S = 2.0
GPU_LOOK_S = 15.0
"""A look at GPUs costs about a second of CPU time and, while it lasts, some hundred MiB of their memory."""
MOST_FAILURES = 3
"""So many looks at GPUs may fail in a row before what was last seen of them is not believed any more."""

_LEDGERS = math.ceil(WITHIN_S / LOOK_S) + 1
"""What the ledger had is remembered for as long as a look at GPUs may take."""

_log = structlog.stdlib.get_logger("modeld.devices")


class DeviceSource(Protocol):
    """Who knows the devices."""

    @property
    def problem(self) -> str | None:
        """What is wrong with the knowledge right now, as a sentence."""
        ...

    def look(self) -> tuple[Device, ...]:
        """Return the devices that models may be on, as they are known now. Must not wait."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep what `look` returns up to date. `started()` when it is known for the first time."""
        ...


class MachineDevices:
    """The devices of this machine: its memory, and the GPUs that llama.cpp would use."""

    def __init__(
        self,
        *,
        backends: tuple[str, ...] | None = None,
        ask: Callable[[], Awaitable[tuple[Device, ...] | Problem]] = read_devices,
        read: Callable[[], Device] = machine_as_device,
    ) -> None:
        """`backends`: of llama.cpp's library, alongside the CPU (default: looked up when it runs)."""
        self.problem: str | None = None
        self._backends = backends
        self._ask = ask
        self._read = read
        self._gpus: tuple[Device, ...] = ()
        self._failures = 0
        self._seen = 0

    def look(self) -> tuple[Device, ...]:
        """Return the machine's memory as it is now, and the GPUs as they were last seen."""
        return (self._read(), *self._gpus)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask for the GPUs again and again; return at once where there can be none."""
        await trio.lowlevel.checkpoint()
        backends = other_backends() if self._backends is None else self._backends
        if backends:
            await self._look_at_gpus()
            _log.info("devices", backends=", ".join(backends), gpus=", ".join(it.name for it in self._gpus))
        task_status.started()
        while self._gpus or self._failures:
            await trio.sleep(GPU_LOOK_S)
            await self._look_at_gpus()

    async def _look_at_gpus(self) -> None:
        answer = await self._ask()
        if not isinstance(answer, Problem):
            self._seen += 1
            self._gpus = tuple(replace(gpu, seen=self._seen) for gpu in gpus_of(answer))
            self._failures, self.problem = 0, None
            return
        self._failures += 1
        if self.problem is None:
            _log.warning("the devices' memory is not known", reason=answer.message)
        if not self._gpus:
            follows = "until it succeeds, llama.cpp alone says where models go, and GPUs are in no ledger"
        elif self._failures < MOST_FAILURES:
            follows = "what was seen before is used"
        else:
            follows = "no model is put on a GPU until it succeeds"
            self._seen += 1
            self._gpus = tuple(replace(gpu, free=0, seen=self._seen) for gpu in self._gpus)
        self.problem = f"{answer.message}; {follows}"


def gpus_of(devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """Return the devices that llama.cpp puts layers on, in its order: GPUs, or those inside the CPU.

    Of the latter those that the first of their backends offers; where there are others they are not used.
    """
    gpus = tuple(device for device in devices if device.kind is DeviceKind.GPU)
    inside = tuple(device for device in devices if device.kind is DeviceKind.IGPU)
    return gpus or tuple(device for device in inside if _backend(device) == _backend(inside[0]))


def _backend(device: Device) -> str:
    return device.name.rstrip("0123456789")


class DeviceWatch:
    """Looks every `LOOK_S`, and knows what the last looks said."""

    def __init__(self, source: DeviceSource, scheduler: Scheduler, *, watches: bool = True) -> None:
        """Without `watches` nothing follows from what is seen; it is shown."""
        self._source = source
        self._scheduler = scheduler
        self._watches = watches
        self._known: tuple[DeviceState, ...] = ()
        self._own = anonymous_bytes(os.getpid()) or 0
        self._ledger: deque[Mapping[str, tuple[int, int]]] = deque(maxlen=_LEDGERS)

    @property
    def problem(self) -> str | None:
        """What is wrong with the knowledge right now, as a sentence."""
        return self._source.problem

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look again and again. `started()` after the first look; returns where nothing is watched."""
        await trio.lowlevel.checkpoint()
        if not self._watches:
            task_status.started()
            return
        async with trio.open_nursery() as nursery:
            await nursery.start(self._source.run)
            self.look()
            task_status.started()
            while True:
                await trio.sleep(LOOK_S)
                self.look()

    def look(self) -> None:
        """Look once, and tell the scheduler if the budget changes by it."""
        fleet = self._scheduler.fleet
        # Ours first: of a worker that ends meanwhile, too much is counted once, and never too little.
        ours = self._on_machine(fleet)
        self._ledger.append(_on_gpus(fleet))
        readings = [self._reading(device, ours) for device in self._source.look()]
        self._known = observe(self._known, readings)
        found = device_limits(self._known)
        after = replace(fleet, devices=found)
        matters = places_on_devices(after) or places_on_devices(fleet) or after.budget != fleet.limits.budget
        if after.budget != fleet.budget or (matters and found != fleet.devices):
            self._scheduler.set_devices(found)

    def _reading(self, device: Device, on_machine: int) -> DeviceReading:
        """Return a look with what is ours there: on the machine measured, on a GPU what the ledger has.

        A look at a GPU takes its time, so the ledger of all that time counts: the most and the least.
        """
        if device.kind is DeviceKind.CPU:
            return DeviceReading(device=device, ours=on_machine)
        held = [ledger.get(device.name, (0, 0)) for ledger in self._ledger]
        return DeviceReading(
            device=device, ours=max(most for most, _ in held), least=min(least for _, least in held)
        )

    def _on_machine(self, fleet: Fleet) -> int:
        """Return the bytes of the machine's memory that models hold and nobody can take back.

        Pages of model files are not among them: they count as available. Models in threads share this
        process; of its growth they are taken to hold what the ledger has for them, at most.
        """
        held = in_threads = 0
        for view in fleet.instances.values():
            instance = self._scheduler.instances.get(view.model_id)
            if instance is None or not view.reserved:
                continue
            if instance.isolation is Isolation.THREAD:
                in_threads += view.reserved
            elif instance.pid is not None:
                found = anonymous_bytes(instance.pid)
                held += view.reserved if found is None else found
        if in_threads:
            held += min(in_threads, max(0, (anonymous_bytes(os.getpid()) or 0) - self._own))
        return held

    def free_on_cards(self) -> int:
        """Return the bytes that are free now on GPUs with memory of their own."""
        return sum(it.device.free for it in self._known if it.device.kind is DeviceKind.GPU)

    def known(self) -> tuple[Device, ...]:
        """Return the devices that are watched, in llama.cpp's order."""
        return tuple(it.device for it in self._known)

    def statuses(self) -> tuple[DeviceStatus, ...]:
        """Return what `/status` tells of each device."""
        if not self._known:
            return tuple(_status(DeviceState(device=device)) for device in self._source.look())
        return tuple(_status(one) for one in self._known)


def _on_gpus(fleet: Fleet) -> Mapping[str, tuple[int, int]]:
    """Return the bytes that the ledger has for each device: the most, and without what comes or goes."""
    held: dict[str, tuple[int, int]] = {}
    for view in fleet.instances.values():
        if not view.reserved or view.placement is None:
            continue
        for name, size in view.placement.bytes.items():
            most, least = held.get(name, (0, 0))
            held[name] = (most + size, least + (size if view.state is InstanceState.READY else 0))
    return held


def _status(one: DeviceState) -> DeviceStatus:
    device = one.device
    return DeviceStatus(
        name=device.name,
        kind=device.kind.value,
        description=device.description,
        total_mb=device.total / MIB,
        free_mb=device.free / MIB,
        ours_mb=one.ours / MIB,
        foreign_mb=one.foreign / MIB,
        effective_mb=None if one.ceiling is None else one.ceiling / MIB,
    )
