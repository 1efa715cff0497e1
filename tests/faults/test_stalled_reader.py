# SPDX-License-Identifier: GPL-3.0-only
"""A reader that takes nothing for longer than `write_timeout`: its slot is free long before it is cut."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
from soaking.http_client import begin
from support.child_processes import descriptors_of
from support.daemon_process import Daemon, client, daemon, infer, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="how a reset is seen differs elsewhere"),
]
WORD = "x" * 1000
LINES = 400
"""More than the buffers of both sockets hold, and less than max_stream_backlog."""
TIMEOUT_S = 5


async def test_a_reader_that_stalls_is_cut_long_after_its_slot_is_free(tmp_path: Path) -> None:
    """The engine speaks to its end; the next client has the one slot while the reader is still there."""
    (tmp_path / "a.gguf").write_bytes(b"x")
    flags = ("--engine", "fake", "--llama-slots", "1", "--write-timeout", f"{TIMEOUT_S}s")
    with daemon(*flags, models_dir=tmp_path) as running:
        async with client(running) as http:
            await infer(http, model="a", prompt="first", max_tokens=1)
            request = {"model": "a", "prompt": WORD, "max_tokens": LINES}
            stuck = await begin(running.port, request, receive_buffer=4096)
            while stuck.status == 0:
                await stuck.advance()
            await until(http, "a", inflight=0)
            before = connections(running)
            lines = await infer(http, model="a", prompt="second third", max_tokens=2)
            assert lines[-1]["content"] == "second third"
            assert connections(running) == before
            with trio.fail_after(60):
                while connections(running) == before:
                    await trio.sleep(0.05)
            await stuck.finish()
            assert not stuck.whole
            assert stuck.tokens < LINES


def connections(running: Daemon) -> int:
    """How many sockets the daemon has: those of clients among them."""
    return sum(name.startswith("socket:") for name in descriptors_of(running.process.pid).values())
