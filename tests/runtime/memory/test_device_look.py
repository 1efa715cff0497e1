# SPDX-License-Identifier: GPL-3.0-only
"""The process that asks the devices: it answers, or ends, and the daemon goes on in any case."""

from __future__ import annotations

import os

import pytest
import trio

from modeld.errors import Problem
from modeld.memory.devices import DeviceKind
from modeld.runtime.memory import device_watch as device_look
from modeld.runtime.memory.device_watch import read_devices
from modeld.worker.process_stats import anonymous_bytes

pytestmark = pytest.mark.process


async def test_a_process_of_its_own_tells_the_devices() -> None:
    """On any machine the CPU is among them."""
    answer = await read_devices(within_s=60.0)
    assert not isinstance(answer, Problem)
    assert DeviceKind.CPU in {device.kind for device in answer}


async def test_one_that_takes_too_long_is_given_up() -> None:
    """A driver that hangs costs a look, and says how long it was waited for."""
    answer = await read_devices(within_s=0.0)
    assert isinstance(answer, Problem)
    assert "did not end within 0 s" in answer.message


async def test_one_that_dies_is_told_with_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that crashes ends the look, and nothing else."""
    asked = device_look.run_oneshot

    async def crash(name: str, _module: str, frame: bytes, within_s: float) -> object:
        return await asked(name, "modeld.there_is_no_such_module", frame, within_s)

    monkeypatch.setattr(device_look, "run_oneshot", crash)
    answer = await read_devices(within_s=60.0)
    assert isinstance(answer, Problem)
    assert "its process ended with 1" in answer.message
    assert "No module named" in answer.message


async def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without room for another process is a problem with a sentence, not an exception."""

    async def full(*_: object) -> object:
        await trio.lowlevel.checkpoint()
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(device_look, "run_oneshot", full)
    answer = await read_devices()
    assert isinstance(answer, Problem)
    assert "Resource temporarily unavailable" in answer.message


def test_what_a_process_holds_for_itself_is_told() -> None:
    """A process that is gone has nothing that could be told."""
    own = anonymous_bytes(os.getpid())
    assert own is not None
    assert own > 2**20
    assert anonymous_bytes(2**22 + 1) is None
