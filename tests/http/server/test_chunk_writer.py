# SPDX-License-Identifier: GPL-3.0-only
"""Lines that are written past the app server: framing, order, full sockets, and who may not have it."""

from __future__ import annotations

import socket
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.backend import finish, text_events
from support.http_server import Raw, infer_bytes, lines_of, serving
from trio.testing import MockClock

from modeld.domain.request_events import Delta
from modeld.http.server.chunk_writer import ChunkWriter, chunk_writer_of
from modeld.http.server.protocol import GuardedH11Protocol
from modeld.runtime.ticket import Ticket

TEXTS = [f"{number}:" + "x" * 1000 for number in range(2000)]
"""Together about 2 MiB of lines."""


class Socket:
    """A connection that takes as many bytes at a time as the test says, and the rest when waited for."""

    chunked = True

    def __init__(self, room: list[int]) -> None:
        self.room = room
        self.data = b""

    def write_now(self, data: bytes) -> int:
        sent = min(len(data), self.room.pop(0) if self.room else len(data))
        self.data += data[:sent]
        return sent

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.data += data


def dechunk(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        body, data = body + rest[:length], rest[length + 2 :]
    return body


@given(st.lists(st.tuples(st.binary(min_size=1), st.integers(0, 12))))
def test_wherever_the_socket_stops_the_bytes_are_in_order(parts: list[tuple[bytes, int]]) -> None:
    """What it did not take of a part goes before the next one, and the framing stays whole."""

    async def write() -> bytes:
        paper = Socket([room for _, room in parts])
        chunk_writer = ChunkWriter(paper)
        for data, _ in parts:
            if not chunk_writer.write(data):
                await chunk_writer.drain()
        return paper.data

    assert dechunk(trio.run(write)) == b"".join(data for data, _ in parts)


async def test_a_reader_with_a_small_buffer_gets_all_lines_in_order() -> None:
    """Chunks that were written in part are completed before anything else: 2 MiB through a narrow socket."""

    async def talk(ticket: Ticket) -> None:
        for text in TEXTS:
            ticket.put(Delta(text))
            await trio.lowlevel.checkpoint()
        finish(ticket, tokens=len(TEXTS))

    async with serving(talk) as served:
        served.backend.max_backlog_bytes = 1 << 30
        raw = await narrow(served.port)
        served.clients.append(raw)
        await raw.infer()
        status, _, body = await raw.answer()
        *tokens, last = lines_of(body)
        assert status == 200
        assert [token["token"] for token in tokens] == TEXTS
        assert last["content"] == "".join(TEXTS)


async def narrow(port: int) -> Raw:
    """Connect with a receive buffer of a few KiB."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", port))
    return Raw(trio.SocketStream(sock))


async def test_the_backlog_of_a_reader_that_stops_is_still_bounded() -> None:
    """Once the socket is full, lines count as backlog, and the limit ends the stream in-band."""
    async with serving() as served:
        served.backend.max_backlog_bytes = 100_000
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        ticket.put(Delta("first"))
        data = await raw.read_until(b"first")
        with trio.fail_after(10):
            while not ticket.ended:
                ticket.put(Delta("x" * 10_000))
                await trio.lowlevel.checkpoint()
        data += await raw.read_until(b"0\r\n\r\n")
        assert b'"type":"reader_too_slow"' in data
        assert data.count(b'"done":true') == 1


async def test_lines_between_the_first_and_the_last_do_not_pass_through_the_app_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of three lines, it is asked to send the first and the last."""
    sent: list[str] = []
    stream_send = GuardedH11Protocol.stream_send

    async def noted(self: GuardedH11Protocol, event: object) -> None:
        sent.append(type(event).__name__)
        await stream_send(self, event)

    monkeypatch.setattr(GuardedH11Protocol, "stream_send", noted)
    async with serving() as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        for text in ("one", "two", "three"):
            ticket.put(Delta(text))
            await raw.read_until(text.encode())
        finish(ticket)
        await raw.read_until(b"0\r\n\r\n")
        assert sent == ["Response", "Body", "Body", "EndBody", "StreamClosed"]


async def test_http_1_0_gets_its_lines_without_chunks() -> None:
    """It reads to the end of the connection, and finds nothing but lines."""
    async with serving() as served:
        raw = await served.connect()
        await raw.send(infer_bytes().replace(b"HTTP/1.1", b"HTTP/1.0"))
        ticket = await served.backend.ticket()
        data = b""
        for text in ("one", "two", "three"):
            ticket.put(Delta(text))
            data += await raw.read_until(text.encode())
        finish(ticket)
        data += await raw.read_to_end()
        head, _, body = data.partition(b"\r\n\r\n")
        assert b"chunked" not in head.lower()
        assert [line.get("token") for line in lines_of(body)] == ["one", "two", "three", None]


async def test_a_connection_serves_one_stream_after_the_other() -> None:
    """After a stream that was written past it, the protocol knows where it is; also with bytes sent ahead."""
    async with serving() as served:
        raw = await served.connect()
        await raw.send(infer_bytes() + infer_bytes() + infer_bytes(stream=False))
        for number in range(2):
            ticket = await served.backend.ticket(number)
            for text in ("a", "b", "c"):
                ticket.put(Delta(text))
                await trio.testing.wait_all_tasks_blocked()
            finish(ticket)
            _, _, body = await raw.answer()
            assert [line.get("token") for line in lines_of(body)] == ["a", "b", "c", None]
        finish(await served.backend.ticket(2))
        _, headers, _ = await raw.answer()
        assert headers["content-type"] == "application/json"


async def test_a_defect_while_lines_are_poured_is_told_in_band(caplog: pytest.LogCaptureFixture) -> None:
    """It stays in its stream: who put the event notices nothing, and the client gets a last line."""
    async with serving() as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        ticket.put(Delta("fine"))
        await raw.read_until(b"fine")
        ticket.put(Delta("x", logprobs=(object(),)))  # What renders it breaks at this.
        data = await raw.read_until(b"0\r\n\r\n")
        assert b'"type":"internal_error"' in data
        assert data.count(b'"done":true') == 1
        await served.backend.wait_closed()
    assert "the answer broke" in caplog.text


async def test_a_client_that_is_gone_does_not_disturb_who_puts(autojump_clock: MockClock) -> None:
    """A reset that nobody has noticed yet ends the write in silence, then the request."""
    async with serving() as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        ticket.put(Delta("here"))
        await raw.read_until(b"here")
        raw.stream.socket.close()
        for _ in range(20):
            ticket.put(Delta("gone"))
        await served.backend.wait_closed()
        assert served.backend.closed == [ticket]


async def test_silence_is_counted_from_the_last_line(autojump_clock: MockClock) -> None:
    """Lines every ten seconds need no blank ones; fifteen seconds without a line do."""
    async with serving() as served:
        raw = await served.connect()
        raw.patience_s = 1000
        await raw.infer()
        ticket = await served.backend.ticket()
        ticket.put(Delta("0;"))
        data = await raw.read_until(b"0;")
        times = [trio.current_time()]
        for number in range(1, 4):
            await trio.sleep(10)
            ticket.put(Delta(f"{number};"))
            data += await raw.read_until(b"%d;" % number)
            times.append(trio.current_time())
        assert b"\r\n1\r\n\n\r\n" not in data
        assert max(after - before for before, after in pairwise(times)) < 15
        assert await raw.read_some() == b"1\r\n\n\r\n"
        assert 15 <= trio.current_time() - times[-1] < 16
        finish(ticket)
        await raw.read_until(b"0\r\n\r\n")


async def test_debug_logs_each_line_once(caplog: pytest.LogCaptureFixture) -> None:
    """Whichever way a line goes."""
    caplog.set_level("DEBUG")
    async with serving() as served:
        raw = await served.connect()
        await raw.send(infer_bytes(headers="X-Log-Level: debug\r\n"))
        ticket = await served.backend.ticket()
        for text in ("one", "two", "three"):
            ticket.put(Delta(text))
            await raw.read_until(text.encode())
        finish(ticket)
        await raw.read_until(b"0\r\n\r\n")
    assert [record.message for record in caplog.records].count("line") == 4  # three, and the last


def test_another_server_gives_no_pen() -> None:
    """An ASGI scope without state, or with a foreign one, is served the usual way."""
    assert chunk_writer_of({}) is None
    assert chunk_writer_of({"state": {}}) is None
    assert chunk_writer_of({"state": None}) is None


async def test_say_is_served_by_pen_and_without_alike() -> None:
    """The same events give the same lines over HTTP/1.1 and HTTP/1.0."""
    async with serving(text_events("a", "b", "c")) as served:
        bodies = []
        for version in (b"HTTP/1.1", b"HTTP/1.0"):
            raw = await served.connect()
            await raw.send(infer_bytes(headers="X-Request-ID: r\r\n").replace(b"HTTP/1.1", version))
            bodies.append((await raw.answer())[2])
        assert lines_of(bodies[0]) == lines_of(bodies[1])
