# SPDX-License-Identifier: GPL-3.0-only
"""What Hypercorn and Quart get wrong out of the box: each of these fails without its remedy."""

from __future__ import annotations

import socket
import struct
from functools import partial

import pytest
import trio
from support.backend import finish, text_events
from support.http_server import Served, infer_bytes, lines_of, serving
from trio.testing import MockClock

from modeld.config.settings import Settings
from modeld.domain.request_events import Delta
from modeld.errors import QueueFull
from modeld.http.app import create_app
from modeld.http.server import connection
from modeld.http.server.listener import serve
from modeld.http.server.protocol import GuardedH11Protocol
from modeld.http.server.request_stream import RequestStream
from modeld.runtime.ticket import Ticket
from modeld.telemetry.metrics import Metrics

UPGRADE = b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def flood(ticket: Ticket) -> None:
    """Say more than any socket buffers, for as long as somebody is there."""
    while not ticket.closed:
        ticket.put(Delta(text="x" * 50_000))
        await trio.sleep(0.002)


async def alive(served: Served) -> bool:
    """Whether a new client is served."""
    raw = await served.connect()
    await raw.send(HEALTH)
    status, _, body = await raw.answer()
    return (status, body) == (200, b"ok")


# 1: one bad request ends the process


async def test_a_defect_in_one_connection_stays_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nobody foresaw ends its connection, is logged, and others are served."""
    handle = GuardedH11Protocol.handle

    async def broken(self: GuardedH11Protocol, event: object) -> None:
        if b"BOOM" in getattr(event, "data", b""):
            raise ZeroDivisionError
        await handle(self, event)

    monkeypatch.setattr(GuardedH11Protocol, "handle", broken)
    async with serving() as served:
        other = await served.connect()
        raw = await served.connect()
        await raw.send(b"BOOM")
        assert await raw.read_to_end() == b""
        await other.send(HEALTH)
        assert (await other.answer())[0] == 200
        assert await alive(served)
    assert any("a connection broke" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "key", [b"", b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n"]
)
async def test_a_websocket_is_refused_and_the_connection_goes_on(key: bytes) -> None:
    """`Upgrade: websocket`, also with bytes behind it, gets a clear 400; the next request works."""
    async with serving() as served:
        raw = await served.connect()
        await raw.send(UPGRADE + key + b"\r\n" + HEALTH)
        status, _, body = await raw.answer()
        assert status == 400
        assert b"WebSocket is not spoken here" in body
        assert (await raw.answer())[0] == 200
        broken = await served.connect()
        await broken.send(UPGRADE + key + b"\r\nx")
        assert (await broken.answer())[0] == 400
        assert await alive(served)


# 2: a client that stops reading hangs the shutdown


@pytest.mark.parametrize("kernel_helps", [False, True])
async def test_a_client_that_never_reads_is_cut(kernel_helps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that takes nothing for `write_timeout` loses its slot, also without TCP_USER_TIMEOUT."""
    if not kernel_helps:
        monkeypatch.setattr(connection, "_watch_peer", lambda *_: None)
    async with serving(flood, write_timeout_s=0.5) as served:
        served.backend.max_backlog_bytes = 1 << 40
        raw = await served.connect()
        await raw.infer()
        assert await alive(served)
        with trio.fail_after(5):
            await served.backend.wait_closed()
        assert await alive(served)


@pytest.mark.slow
async def test_a_client_that_never_reads_cannot_delay_the_shutdown() -> None:
    """Once the listener stops, such a client has `shutdown_timeout`, not `write_timeout`."""
    async with serving(flood, write_timeout_s=60, shutdown_timeout_s=0.5, grace_s=30) as served:
        raw = await served.connect()
        await raw.infer()
        await served.backend.ticket()
        await trio.sleep(0.3)  # Until its buffers are full.
        began = trio.current_time()
        served.shutdown.set()
        with trio.fail_after(5):
            await served.ended.wait()
        assert trio.current_time() - began < 3


@pytest.mark.slow
async def test_a_slow_reader_is_not_cut() -> None:
    """Whoever takes something within the write timeout gets everything, however long it takes."""
    async with serving(text_events(*["y" * 10_000] * 25), write_timeout_s=0.6) as served:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect(("127.0.0.1", served.port))
        await sock.send(infer_bytes())
        began, data = trio.current_time(), b""
        while not data.endswith(b"0\r\n\r\n"):
            data += await sock.recv(30_000)
            await trio.sleep(0.02)
        sock.close()
        assert trio.current_time() - began > 0.6
        assert b'"done":true' in data


# 3 and 7: Quart's RESPONSE_TIMEOUT, Hypercorn's read_timeout


@pytest.mark.slow
async def test_no_timeout_of_any_layer_cuts_a_stream(mock_clock: MockClock) -> None:
    """A stream that is silent for ten minutes arrives whole, with a blank line every 15 seconds."""
    mock_clock.rate = 1
    async with serving() as served:
        raw = await served.connect()
        raw.patience_s = 1e6
        await raw.infer()
        ticket = await served.backend.ticket()
        ticket.put(Delta(text="before"))
        data = await raw.read_until(b"before")
        mock_clock.rate = 500
        until = trio.current_time() + 600
        while trio.current_time() < until:
            data += await raw.read_some()
        mock_clock.rate = 1
        blank = data.count(b"1\r\n\n\r\n")
        assert 10 < blank <= 40
        ticket.put(Delta(text="after"))
        finish(ticket)
        data += await raw.read_until(b"0\r\n\r\n")
        assert b"after" in data
        assert data.count(b'"done":true') == 1


# 4: a body that was never entered is never cleaned up


async def test_a_client_that_leaves_before_the_first_chunk_frees_its_slot() -> None:
    """The ticket is closed also when Quart never begins to iterate over the body."""
    async with serving(text_events("a")) as served:
        request_stream = RequestStream()
        await request_stream.feed({"type": "http.request", "body": b'{"prompt":"x"}', "more_body": False})

        async def receive() -> dict[str, object]:
            raise AssertionError("what a client sends comes by `RequestStream`")

        async def send(message: dict[str, object]) -> None:
            assert message["type"] == "http.response.start"
            await request_stream.feed({"type": "http.disconnect"})
            await trio.sleep_forever()

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/infer",
            "raw_path": b"/infer",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": request_stream.into({}),
            "extensions": {},
        }
        with trio.fail_after(5):
            await served.app(scope, receive, send)
            await served.backend.wait_closed()
        labels = {"path": "/infer", "method": "POST", "status": "499"}
        assert served.sample("modeld_http_requests_total", **labels) == 1


async def test_a_client_that_resets_around_the_first_chunk_frees_its_slot() -> None:
    """At whichever step between the first event and the first byte its reset comes, on a real socket."""
    async with serving() as served:
        for steps in range(40):
            raw = await served.connect()
            await raw.infer()
            ticket = await served.backend.ticket(steps)
            ticket.put(Delta(text="The"))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await reset(raw.stream)
            await served.backend.wait_closed(steps)
        assert await alive(served)


# 5: lifespan crashes are swallowed


async def test_a_start_up_that_fails_stops_the_start() -> None:
    """`serve` raises what the app's start-up raises, instead of going on without it."""
    async with serving() as served:
        app = create_app(served.backend, Settings(), Metrics())

        async def fail() -> None:
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError

        app.before_serving(fail)
        with pytest.raises(ZeroDivisionError):
            await serve(app, ["127.0.0.1:0"], shutdown=trio.Event())


# 6: leaving


async def reset(sock: trio.SocketStream) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await sock.aclose()


LEAVING = {
    "close": lambda stream: stream.aclose(),
    "half-close": lambda stream: stream.send_eof(),
    "reset": reset,
}


@pytest.mark.parametrize("way", LEAVING)
@pytest.mark.parametrize("ahead", [b"", b"\r\n", HEALTH, HEALTH * 100, b"x" * 20_000])
@pytest.mark.parametrize("when", ["waiting", "streaming"])
async def test_leaving_frees_the_slot(way: str, ahead: bytes, when: str) -> None:
    """However a client leaves, whatever it sent ahead, and although nothing is written to it."""
    async with serving() as served:
        raw = await served.connect()
        await raw.send(infer_bytes() + ahead)
        ticket = await served.backend.ticket()
        if when == "streaming":
            ticket.put(Delta(text="The"))
            await raw.read_until(b"The")
        await LEAVING[way](raw.stream)
        with trio.fail_after(5):
            await served.backend.wait_closed()
        labels = {"path": "/infer", "method": "POST", "status": "499"}
        with trio.fail_after(30):
            while not served.sample("modeld_http_requests_total", **labels):
                await trio.lowlevel.checkpoint()
        assert served.backend.closed == [ticket]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEALTH, 200),
        (HEALTH.replace(b"healthz", b"models"), 200),
        (HEALTH.replace(b"healthz", b"status"), 200),
        (HEALTH.replace(b"GET", b"PUT"), 405),
        (infer_bytes(prompt=""), 400),
        (infer_bytes(modle="x"), 400),
        (infer_bytes(model="nope"), 404),
        (infer_bytes(headers="Content-Encoding: gzip\r\n"), 415),
        (infer_bytes(prompt="x" * 200_000), 413),
    ],
)
async def test_what_needs_no_engine_is_answered_after_a_half_close(data: bytes, status: int) -> None:
    """A client may say that it has said all (`nc -N`): it still reads why it is refused, to a clean end."""
    async with serving(max_body_bytes=100_000) as served:
        for _ in range(10):
            raw = await served.connect()
            await raw.send(data)
            await raw.stream.send_eof()
            assert (await raw.answer())[0] == status
            assert await raw.read_to_end() == b""
        assert not served.backend.tickets


async def test_a_refusal_by_the_scheduler_is_answered_after_a_half_close() -> None:
    """It comes before any work has begun."""
    async with serving() as served:
        served.backend.refusal = QueueFull("32 wait already")
        raw = await served.connect()
        await raw.infer()
        await raw.stream.send_eof()
        assert (await raw.answer())[0] == 429


async def test_leaving_in_the_middle_of_a_body_ends_the_request() -> None:
    """Nobody waits for the rest of it until `body_timeout_s`."""
    async with serving(body_timeout_s=60) as served:
        raw = await served.connect()
        await raw.send(infer_bytes()[:-3])
        await raw.stream.send_eof()
        with trio.fail_after(30):
            while not served.sample("modeld_http_requests_total", path="/infer", method="POST", status="499"):
                await trio.sleep(0.01)
        assert served.backend.tickets == [], "what was not sent whole is not asked"


async def test_leaving_without_stream_frees_the_slot() -> None:
    """Also a client that waits for a whole answer is missed when it goes."""
    async with serving() as served:
        raw = await served.connect()
        await raw.infer(stream=False)
        ticket = await served.backend.ticket()
        await raw.stream.aclose()
        await served.backend.wait_closed()
        assert served.backend.closed == [ticket]


async def test_a_stuck_client_that_half_closes_frees_the_slot_at_once() -> None:
    """A write that cannot go on does not hide that the client has left."""
    async with serving(flood, write_timeout_s=60) as served:
        served.backend.max_backlog_bytes = 1 << 40
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        await trio.sleep(0.3)  # Until its buffers are full.
        await raw.stream.send_eof()
        await served.backend.wait_closed()
        assert served.backend.closed == [ticket]


async def test_pipelined_requests_are_served_in_turn() -> None:
    """Requests sent ahead wait for theirs, and all are answered in order on one connection."""
    async with serving(text_events("a", "b")) as served:
        raw = await served.connect()
        await raw.send(HEALTH + infer_bytes() + HEALTH + infer_bytes(stream=False) + HEALTH)
        assert (await raw.answer())[2] == b"ok"
        assert len(lines_of((await raw.answer())[2])) == 3
        assert (await raw.answer())[2] == b"ok"
        assert b'"content":"ab"' in (await raw.answer())[2]
        assert (await raw.answer())[2] == b"ok"


async def test_sending_ahead_has_a_bound() -> None:
    """A client that floods the connection behind its request is cut, not buffered for ever."""
    async with serving(max_body_bytes=50_000) as served:
        raw = await served.connect()
        await raw.infer()
        await served.backend.ticket()
        with pytest.raises(trio.BrokenResourceError):
            await raw.send(b"x" * 50_000_000)
        await served.backend.wait_closed()


# 8: binding


async def test_a_socket_can_be_inherited() -> None:
    """`fd://N` serves on a socket that somebody else has bound, as systemd does."""
    async with serving() as served:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        shutdown = trio.Event()
        async with trio.open_nursery() as nursery:
            start = partial(serve, served.app, [f"fd://{sock.detach()}"], shutdown=shutdown)
            [url] = await nursery.start(start)
            assert url == f"http://127.0.0.1:{port}"
            async with served.client() as client:
                assert (await client.get(f"{url}/healthz")).text == "ok"
            shutdown.set()


# 10: `Connection: close` is never closed


@pytest.mark.parametrize("request_line", ["close", "HTTP/1.0"])
async def test_a_connection_that_should_close_does(request_line: str) -> None:
    """A client that reads to the end of the stream comes to it."""
    async with serving(text_events("a")) as served:
        raw = await served.connect()
        data = infer_bytes(headers="Connection: close\r\n")
        await raw.send(data if request_line == "close" else data.replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await raw.read_to_end()
        assert b'"done":true' in answer
