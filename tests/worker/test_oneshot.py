# SPDX-License-Identifier: GPL-3.0-only
"""A process that answers once: whoever asked goes on, even if the kernel does not let go of it."""

from __future__ import annotations

import pytest
import trio

from modeld.worker import oneshot as once
from modeld.worker import spawn
from modeld.worker.oneshot import run_oneshot
from modeld.worker.spawn import Spawned

pytestmark = pytest.mark.process


async def test_a_killed_process_that_does_not_go_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that hangs in the kernel keeps its process; the look is given up all the same."""
    started: list[Spawned] = []

    def remembered(name: str, module: str) -> Spawned:
        started.append(spawn.spawn(name, module))
        return started[0]

    async def never(_process: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(once, "spawn", remembered)
    monkeypatch.setattr(once, "wait_until_gone", never)
    monkeypatch.setattr(once, "GONE_S", 0.0)
    with trio.fail_after(60):
        said = await run_oneshot("hangs", "modeld.worker.device_child", b"", 0.0)
    assert (said.in_time, said.code) == (False, None)
    [child] = started
    assert child.sock.fileno() == -1, "its descriptors are closed"
    assert child.process.wait(60) == -9, "it was killed"


async def test_one_that_ends_without_a_word_is_told_by_its_code() -> None:
    """What it wrote to standard error goes into the sentence."""
    said = await run_oneshot("mute", "modeld.there_is_no_such_module", b"", 60.0)
    assert (said.reply, said.in_time, said.code) == (b"", True, 1)
    assert "No module named" in said.end
