# SPDX-License-Identifier: GPL-3.0-only
"""A process that asks ggml's devices for their memory, and ends.

`python -m modeld.worker.device_look FD DAEMON NAME`, started by `look_at_devices` alone. It loads the drivers
of GPUs, which take memory there and may crash: in the daemon neither is wanted. What its own context takes
is gone with it, but was counted as taken when it looked.
"""

from __future__ import annotations

import socket
import sys

import msgspec
import trio

from modeld.core.devices import Device
from modeld.engine.llama.devices import list_devices
from modeld.errors import ModelFailed, Problem
from modeld.worker.bounds import bound
from modeld.worker.once import ask_once
from modeld.worker.once_child import answer_once

WITHIN_S = 20.0
"""Seconds after which a look is given up. The driver of a GPU that slept takes some to wake it."""
_CPU_S = 20
_MEMORY_BYTES = 8 << 30
"""Of address space that drivers may write to; they reserve much, and touch little of it."""


async def look_at_devices(within_s: float = WITHIN_S) -> tuple[Device, ...] | Problem:
    """Ask a child process for all devices. Never raises for what a driver does.

    Cancellation: kills the child, and waits until it is gone.
    """
    await trio.lowlevel.checkpoint()
    try:
        said = await ask_once("devices", "modeld.worker.device_look", b"", within_s)
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


def _reply(_sock: socket.socket) -> bytes:
    bound(memory=_MEMORY_BYTES, cpu_s=_CPU_S)
    return msgspec.json.encode(list_devices())


if __name__ == "__main__":
    answer_once(sys.argv[1:], _reply)
