# SPDX-License-Identifier: GPL-3.0-only
"""The daemon as a whole: where it cannot begin, and the order in which its front ends."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio
from support.backend import ScriptedBackend

from modeld.cli import compose
from modeld.config.settings import Settings
from modeld.domain.request_events import Delta, Started, Usage
from modeld.http.auth import Authorizer
from modeld.quotas.usage import NOBODY
from modeld.runtime.keys.usage_store import UsageStore
from modeld.runtime.ticket import Ticket
from modeld.telemetry.metrics import Metrics

PATIENCE_S = 60.0
PROGRAM = """
import sys
from pathlib import Path
from modeld.cli.compose import serve_forever
from modeld.config.settings import Settings
from modeld.domain.model import EngineKind
sys.exit(serve_forever(Settings(addr=sys.argv[1], models_dir=Path(sys.argv[2]), engine=EngineKind.FAKE)))
"""


@pytest.mark.process
def test_an_address_that_is_taken_behind_the_preflight_is_told_in_a_line(tmp_path: Path) -> None:
    """It names the address and the reason, without a traceback, and the exit code is 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, address, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 1
    assert f"modeld: cannot listen on {address}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


async def endless(ticket: Ticket) -> None:
    """Begin an answer, and never end it."""
    ticket.put(Started(usage=Usage(prompt_tokens=5)))
    ticket.put(Delta(text="once"))
    await trio.lowlevel.checkpoint()


async def test_a_front_that_is_cut_writes_down_what_its_requests_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of usage is closed when the last request has ended, not at the same moment."""
    monkeypatch.setattr(compose, "_spare_collector", lambda: None)
    settings = Settings(state_dir=tmp_path)
    async with trio.open_nursery() as nursery:
        front = partial(
            compose._front,
            ScriptedBackend(nursery, endless),
            settings=settings,
            authorizer=Authorizer(None),
            tls=None,
            metrics=Metrics(),
            binds=("127.0.0.1:0",),
            shutdown=trio.Event(),
        )
        [url] = await nursery.start(front)
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        async with stream:
            body = b'{"prompt": "x"}'
            head = b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            await stream.send_all(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = b""
            with trio.fail_after(PATIENCE_S):
                while b'"once"' not in answer:
                    answer += await stream.receive_some()
            nursery.cancel_scope.cancel()
    totals, _ = UsageStore(tmp_path / "usage.sqlite3").open(datetime.now(UTC).date().isoformat())
    assert totals[NOBODY].requests == 1
