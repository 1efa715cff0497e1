# SPDX-License-Identifier: GPL-3.0-only
"""Asks ggml's devices for their memory, in a process of its own (`worker.device_child`).

The drivers of GPUs are loaded for it, which take memory there and may crash: in the daemon neither is wanted.
"""

from __future__ import annotations

import msgspec
import trio

from modeld.core.devices import Device
from modeld.errors import ModelFailed, Problem
from modeld.worker.once import ask_once

WITHIN_S = 20.0
"""Seconds after which a look is given up. The driver of a GPU that slept takes some to wake it."""


async def look_at_devices(within_s: float = WITHIN_S) -> tuple[Device, ...] | Problem:
    """Ask a child process for all devices. Never raises for what a driver does.

    Cancellation: kills the child, and waits until it is gone.
    """
    await trio.lowlevel.checkpoint()
    try:
        said = await ask_once("devices", "modeld.worker.device_child", b"", within_s)
    except OSError as error:
        return _failed(f"no process could be started: {error.strerror or error}")
    if not said.in_time:
        return _failed(f"it did not end within {within_s:g} s")
    try:
        return msgspec.json.decode(said.reply, type=tuple[Device, ...])
    except msgspec.DecodeError:
        return _failed(said.end)


def _failed(why: str) -> Problem:
    return ModelFailed(f"the look at the devices' memory failed: {why}").as_problem()
