# SPDX-License-Identifier: GPL-3.0-only
"""Bytes that are nearly HTTP, from hypothesis: each is answered or cut off, and nothing stays behind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backend import text_events
from support.http_server import Served, serving

EXAMPLES = 60 * int(os.environ.get("MODELD_FUZZ", "1"))
BODY = b'{"prompt":"x"}'
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
LEGAL = {100, 200, 204, 400, 404, 405, 408, 413, 415, 421, 431, 501, 505}
BOUNDS = {"header_timeout_s": 0.1, "body_timeout_s": 0.1, "keep_alive_s": 0.1, "linger_s": 0.1}

numbers = st.sampled_from(
    [b"0", b"1", b"5", b"14", b"+14", b"-1", b"0x0e", b"1e3", b"14, 14", b"14,15", b" 14 ", b""]
)
numbers |= st.integers(0, 2**70).map(lambda number: b"%d" % number)
codings = st.sampled_from(
    [
        b"chunked",
        b"Chunked",
        b"gzip, chunked",
        b"chunked, chunked",
        b"chunked, identity",
        b"identity",
        b"x\tchunked",
        b"",
    ]
)
junk = st.binary(max_size=40) | st.sampled_from(
    [b"\0", b"\xff\xfe", b"\r", b"\n", b"\r\n\r\n", b"\t", b"x" * 70_000]
)
headers = st.one_of(
    st.tuples(st.sampled_from([b"Content-Length", b"content-length", b"Content-Length "]), numbers),
    st.tuples(st.sampled_from([b"Transfer-Encoding", b"Transfer-Encoding\t", b"TE"]), codings),
    st.tuples(
        st.sampled_from([b"Host", b"Connection", b"Expect", b"Upgrade", b"X-Request-ID", b"X-Log-Level"]),
        junk,
    ),
    st.tuples(
        st.sampled_from([b"Accept", b"Accept-Encoding", b"Origin", b"Content-Type", b"Range", b"Cookie"]),
        junk,
    ),
    st.tuples(junk, junk),
)
chunks = st.one_of(
    st.just(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    st.tuples(
        st.sampled_from([b"e", b"0e", b"E;x=y", b"-1", b"0x1", b"ffffffffffffffff", b"g", b""]), junk
    ).map(lambda pair: pair[0] + b"\r\n" + pair[1] + b"\r\n0\r\n\r\n"),
    st.just(b"1\r\n{\r\n" * 2000),
    st.just(b"0\r\nTrailer: x\r\nContent-Length: 5\r\n\r\n"),
)
targets = st.sampled_from(
    [
        b"/infer",
        b"/infer?log=debug",
        b"/healthz",
        b"/models",
        b"*",
        b"http://x/infer",
        b"/%00",
        b"/%zz",
        b"/..",
        b"//infer",
    ]
) | junk.map(lambda data: b"/" + data)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from([b"POST", b"GET", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI", b"\0"]))
    version = draw(st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.1 "]))
    lines = [
        b"%b %b %b" % (method, draw(targets), version),
        b"Host: localhost",
        b"Content-Type: application/json",
    ]
    lines += [b"%b: %b" % header for header in draw(st.lists(headers, max_size=4))]
    lines += [b"X-Flood: 1"] * draw(st.sampled_from([0, 0, 0, 50, 5000]))
    end = draw(st.sampled_from([b"\r\n"] * 5 + [b"\n"]))
    return end.join(lines) + 2 * end + draw(st.one_of(st.just(BODY), chunks, junk, st.just(b"")))


streams = st.lists(st.one_of(requests(), requests(), st.just(HEALTH), junk), min_size=1, max_size=4).map(
    b"".join
)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def speak(served: Served, data: bytes, cuts: list[int], ending: str) -> bytes:
    """Send the data in pieces; then read to the end, or leave."""
    stream, answer = await trio.open_tcp_stream("127.0.0.1", served.port), b""
    async with stream:
        try:
            for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                await stream.send_all(data[begin:end])
                await trio.lowlevel.checkpoint()
            if ending == "leave":
                return b""
            if ending == "half-close":
                await stream.send_eof()
            with trio.move_on_after(5):
                while part := await stream.receive_some(65536):
                    answer += part
        except trio.BrokenResourceError:
            pass
    return answer


def statuses(answer: bytes) -> Iterator[int]:
    return (int(status) for status in re.findall(rb"(?<!\")HTTP/1\.1 (\d{3})", answer))


@settings(max_examples=EXAMPLES)
@given(
    data=streams,
    where=st.lists(st.floats(0, 1), max_size=4),
    ending=st.sampled_from(["read", "half-close", "leave"]),
)
@pytest.mark.slow
def test_no_bytes_harm_the_server(data: bytes, where: list[float], ending: str) -> None:
    """Whatever comes, in whatever pieces: a legal answer or none, the next client is served, no leak."""

    async def main() -> None:
        async with serving(text_events("a"), **BOUNDS) as served:
            other = await served.connect()
            await other.send(HEALTH)
            assert (await other.answer())[0] == 200
            await other.stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
            before = (descriptors(), tasks())
            cuts = sorted(int(share * len(data)) for share in where)
            answer = await speak(served, data, cuts, ending)
            assert set(statuses(answer)) <= LEGAL
            fresh = await served.connect()
            await fresh.send(HEALTH)
            assert (await fresh.answer())[2] == b"ok"
            await fresh.stream.aclose()
            with trio.fail_after(5):
                while (descriptors(), tasks()) != before:
                    await trio.sleep(0.01)
            assert all(ticket.closed for ticket in served.backend.tickets)
            assert served.sample("modeld_http_inflight_requests") == 0

    trio.run(main)


SMUGGLED = {
    "two lengths": b"Content-Length: 14\r\nContent-Length: 60\r\n",
    "a list of lengths": b"Content-Length: 14, 60\r\n",
    "length and coding": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    "coding and length": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "a coding nobody knows": b"Transfer-Encoding: xchunked\r\n",
    "a blank before the colon": b"Content-Length : 14\r\n",
    "a sign": b"Content-Length: +14\r\n",
    "an underscore": b"Content-Length: 1_4\r\n",
    "a bare carriage return": b"X: a\rContent-Length: 14\r\n",
}


@pytest.mark.parametrize("head", SMUGGLED.values(), ids=SMUGGLED)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_request_that_two_servers_could_read_differently_is_refused(
    head: bytes, version: bytes
) -> None:
    """What follows such a request on its connection is never taken for a request of its own."""
    smuggled = b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    first = b"POST /infer HTTP/" + version + b"\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with serving(text_events("a"), **BOUNDS) as served:
        for body in (BODY, b"e\r\n" + BODY + b"\r\n0\r\n\r\n", b"0\r\n\r\n"):
            answer = await speak(served, first + head + b"\r\n" + body + smuggled, [], "read")
            assert list(statuses(answer)) in ([400], [501])
        assert not served.backend.tickets


async def test_a_chunked_request_of_http_1_0_is_refused() -> None:
    """That version has no chunks: what stands before this server may have seen another end."""
    head = b"POST /infer HTTP/1.0\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(text_events("a"), **BOUNDS) as served:
        answer = await speak(served, head + b"e\r\n" + BODY + b"\r\n0\r\n\r\n", [], "read")
        assert list(statuses(answer)) == [400]
