# SPDX-License-Identifier: GPL-3.0-only
"""Streams of hours, and readers that stop: what they cost others, which is nothing."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
import trio
from support.backend import finish
from support.http_server import Raw, Served, infer_bytes, lines_of, serving
from trio.testing import MockClock

from modeld.domain.request_events import Delta
from modeld.runtime.ticket import Ticket

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
MUCH = "x" * 1000
LINES = 300
"""So much more than a small receive buffer and the sender's first window hold."""


async def much(ticket: Ticket) -> None:
    """Say it all at once to who asks for it, and three words to others."""
    for number in range(LINES if ticket.order.request.prompt == "much" else 3):
        ticket.put(Delta(text=f"{number} {MUCH}" if ticket.order.request.prompt == "much" else "word "))
    finish(ticket)


async def stopped(served: Served) -> trio.SocketStream:
    """A client that asks for much, and does not read."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", served.port))
    stream = trio.SocketStream(sock)
    await stream.send_all(infer_bytes(prompt="much"))
    return stream


async def read_answer(stream: trio.SocketStream) -> list[dict[str, object]]:
    _, _, body = await Raw(stream).answer()
    return lines_of(body)


async def read_all(stream: trio.SocketStream) -> bytes:
    """Read until the end of the stream, or its reset."""
    data = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while part := await stream.receive_some(65536):
            data += part
    return data


@pytest.mark.slow
async def test_a_reader_that_stalls_and_goes_on_loses_nothing(mock_clock: MockClock) -> None:
    """After 20 s without reading, every line is there, in order, and the last one has it all."""
    mock_clock.rate = 20
    async with serving(much) as served:
        stream = await stopped(served)
        await served.backend.ticket()
        await trio.sleep(20)
        *lines, last = await read_answer(stream)
        assert [line["token"] for line in lines] == [f"{number} {MUCH}" for number in range(LINES)]
        assert last["content"] == "".join(line["token"] for line in lines)
        await stream.aclose()


@pytest.mark.slow
async def test_a_reader_that_stalls_for_too_long_is_cut_in_its_time(mock_clock: MockClock) -> None:
    """Not before `write_timeout`, and soon after it; what it has read until then is its own."""
    mock_clock.rate = 20
    async with serving(much) as served:
        assert served.app.context.limits.write_timeout_s == 60
        stream = await stopped(served)
        began = trio.current_time()
        ticket = await served.backend.ticket()
        while not ticket.closed:
            await trio.sleep(0.5)
        assert 55 < trio.current_time() - began < 90
        assert b'"done":true' not in await read_all(stream)
        await stream.aclose()


@pytest.mark.slow
async def test_five_hundred_readers_that_stop_are_felt_by_nobody() -> None:
    """Health and another's stream are answered as ever, and the stop takes no longer than it may."""
    async with serving(much, shutdown_timeout_s=0.5, grace_s=0.5) as served:
        streams = [await stopped(served) for _ in range(500)]
        await served.backend.ticket(499)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not served.backend.closed  # all of them are stuck in the middle
        began = trio.current_time()
        for _ in range(10):
            raw = await served.connect()
            await raw.send(HEALTH)
            assert (await raw.answer())[2] == b"ok"
            await raw.infer(prompt="little")
            assert len(lines_of((await raw.answer())[2])) == 4
        assert trio.current_time() - began < 5
        began = trio.current_time()
        served.shutdown.set()
        await served.ended.wait()
        assert trio.current_time() - began < 5
        assert len(served.backend.closed) == 510
        for stream in streams:
            await stream.aclose()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
async def test_a_stream_of_two_hours_arrives_whole_and_costs_no_memory(mock_clock: MockClock) -> None:
    """7,200 tokens in two hours: no timeout of any layer ends it, and nothing is kept of what was read."""
    mock_clock.rate = 1000

    async def slowly(ticket: Ticket) -> None:
        for number in range(7200):
            ticket.put(Delta(text=f"{number} "))
            await trio.sleep(1)
        finish(ticket)

    async with serving(slowly) as served:
        raw = await served.connect()
        raw.patience_s = 1e6
        began, lines, early = trio.current_time(), 0, 0
        await raw.infer()
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            part = await raw.read_some()
            lines += part.count(b'"done":false')
            data = (data + part)[-400_000:] if lines > 6800 else part[-100:]
            early = early or (resident_bytes() if lines > 700 else 0)
        assert trio.current_time() - began > 7000
        assert lines == 7200
        assert b'"done":true' in data
        assert b"7199" in data
        assert resident_bytes() - early < 8 * 1024 * 1024
