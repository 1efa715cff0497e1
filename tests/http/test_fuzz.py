# SPDX-License-Identifier: GPL-3.0-only
"""Broken requests by the hundred: none of them may find a way to a 500 or to the log."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
import trio
from support.backend import text_events
from support.http_server import Served, infer_bytes, serving

from modeld.config.settings import Settings

SEEDS = (
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"HEAD /docs HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n",
    b"GET /models HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text\r\n\r\n",
    b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    (
        b"OPTIONS /infer HTTP/1.1\r\nHost: localhost\r\nOrigin: https://a\r\n"
        b"Access-Control-Request-Method: POST\r\n\r\n"
    ),
    (
        b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"pro\r\n9\r\nmpt":"x"}\r\n0\r\n\r\n'
    ),
    infer_bytes(),
    infer_bytes(stream=False),
    infer_bytes(headers="Expect: 100-continue\r\n"),
)
HEADERS = (
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Upgrade: h2c\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"Accept-Encoding: gzip;q=x, *;q=0\r\n",
    b"Accept: ;;q=,,\r\n",
    b"Content-Type: \r\n",
    b"Origin: \xff\r\n",
    b"X-Request-ID: \xc3\xa9\r\n",
    b"Cookie: session=\xff\r\n",
    b"Range: bytes=0-1\r\n",
    b"Host: y\r\n",
)
PIECES = (b"\r\n", b"\x00", b"\xff", b" ", b"HTTP/2.0", b"?log=x", b"%00", b"%zz", b"//", b"[", *SEEDS)


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Break a request in up to three places."""
    out = bytearray(data)

    def change() -> None:
        if out:
            out[dice.randrange(len(out))] = dice.randrange(256)

    def insert() -> None:
        at = dice.randrange(len(out) + 1)
        out[at:at] = dice.choice(PIECES)

    def drop() -> None:
        at = dice.randrange(len(out) + 1)
        del out[at : at + dice.randrange(1, 20)]

    def head() -> None:
        at = out.find(b"\r\n") + 2
        out[at:at] = dice.choice(HEADERS)

    def target() -> None:
        at = out.find(b" ") + 1
        out[at:at] = dice.choice(PIECES)

    ways: list[Callable[[], None]] = [change, insert, drop, head, target]
    for _ in range(dice.randrange(4)):
        dice.choice(ways)()
    return bytes(out)


async def speak(served: Served, data: bytes, cut: int, manner: float) -> bytes:
    """Send it in two parts; then leave, half-close, or listen until nothing comes."""
    stream = await trio.open_tcp_stream("127.0.0.1", served.port)
    answer = b""
    async with stream:
        try:
            await stream.send_all(data[:cut])
            await stream.send_all(data[cut:])
            if manner < 0.2:
                return b""
            if manner < 0.5:
                await stream.send_eof()
            with trio.move_on_after(2):
                while part := await stream.receive_some(65536):
                    answer += part
        except trio.BrokenResourceError:
            pass
    return answer


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
async def test_broken_requests_break_nothing(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Every status is a refusal or a success, nothing is logged as a defect, and nothing is left behind."""
    dice = random.Random(seed)  # noqa: S311  # the same broken requests every time
    settings = Settings(cors_enabled=True, cors_allowed_origins=("https://a",))
    bounds = {"header_timeout_s": 0.2, "body_timeout_s": 0.2, "keep_alive_s": 0.2, "linger_s": 0.2}
    answers: list[tuple[bytes, bytes]] = []
    async with serving(text_events("a", "b"), settings=settings, **bounds) as served:

        async def one(data: bytes, cut: int, manner: float) -> None:
            answers.append((data, await speak(served, data, cut, manner)))

        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    data = mutate(dice.choice(SEEDS), dice)
                    nursery.start_soon(one, data, dice.randrange(len(data) + 1), dice.random())
    for data, answer in answers:
        statuses = {int(status) for status in re.findall(rb"(?<!\")HTTP/1\.1 (\d{3})", answer)}
        assert statuses <= {100, 200, 204, 400, 403, 404, 405, 408, 413, 415, 421, 431, 501, 505}, data
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    assert served.sample("modeld_http_inflight_requests") == 0
    assert all(ticket.closed for ticket in served.backend.tickets)
