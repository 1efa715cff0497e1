# SPDX-License-Identifier: GPL-3.0-only
"""What strangers send: each gets its clear error, and the next request is served. No 500."""

from __future__ import annotations

import json
import time

import h11
import pytest
import trio
import trio.testing
from support.backend import text_events
from support.http_server import Raw, Served, infer_bytes, serving

from modeld.http.limits import HttpLimits
from modeld.http.server.request_checks import malformed

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
JSON_TYPE = "Content-Type: application/json\r\n"


def post(body: bytes, headers: str = JSON_TYPE) -> bytes:
    head = f"POST /infer HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def answer_to(served: Served, data: bytes) -> tuple[Raw, int, dict[str, str], dict[str, object]]:
    raw = await served.connect()
    await raw.send(data)
    status, headers, body = await raw.answer()
    told = json.loads(body)
    assert told["code"] == status
    assert told["error"]
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-request-id"]
    return raw, status, headers, told


@pytest.mark.parametrize(
    ("data", "status", "told"),
    [
        (post(b""), 400, "the body is empty"),
        (post(b"hello"), 400, "the body is not JSON"),
        (post(b'{"prompt":""}'), 400, "`prompt` is empty"),
        (post(b'{"prompt":5}'), 400, "`prompt` must be a string"),
        (post(b'{"prompt":"x","temperature":NaN}'), 400, "the body is not JSON"),
        (post(b'{"prompt":"x","temperature":1e999}'), 400, "out of range"),
        (post(b'{"prompt":"\xff\xfe"}'), 400, "not UTF-8"),
        (
            post(b'{"prompt":"x","json_schema":' + b"[" * 99_999 + b"]" * 99_999 + b"}"),
            400,
            "nested too deeply",
        ),
        (post(b'{"prompt":"x","modle":"y"}'), 400, "did you mean model?"),
        (post(b'{"prompt":"x","model":"nope"}'), 404, "no model is called nope"),
        (post(b'{"prompt":"x"}', ""), 415, "the request names none"),
        (post(b'{"prompt":"x"}', "Content-Type: text/plain\r\n"), 415, 'not "text/plain"'),
        (post(b"{}", "Content-Type: application/json+x\r\n"), 415, "must be application/json"),
        (post(b"{}", JSON_TYPE + "Content-Encoding: gzip\r\n"), 415, "must not be encoded"),
        (b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "there is no"),
        (b"GET ?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "neither a path nor a URL"),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "there is no /*"),
        (b"BREW /infer HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "does not take BREW"),
        (
            b"head /status HTTP/1.1\r\nHost: localhost\r\n\r\n",
            501,
            'there is no method "head"; did you mean HEAD?',
        ),
        (b"get /status HTTP/1.1\r\nHost: localhost\r\n\r\n", 501, "did you mean GET?"),
        (infer_bytes().replace(b"POST", b"Post", 1), 501, "did you mean POST?"),
        (b"b~`|rew /status HTTP/1.1\r\nHost: localhost\r\n\r\n", 501, 'there is no method "b~`|rew"'),
        (b"GET http://[bad/none HTTP/1.1\r\nHost: localhost\r\n\r\n", 421, 'the host "[bad" is not served'),
        (b"GET http://localhost/none HTTP/1.1\r\nHost: evil\r\n\r\n", 404, "there is no /none"),
        (b"GET http://evil?x HTTP/1.1\r\nHost: localhost\r\n\r\n", 421, 'the host "evil" is not served'),
        (b"GET / HTTP/1.1\r\nHost: localhost\xa0\r\n\r\n", 421, "is not served"),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "neither a path nor a URL"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "the Host header is missing"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400, "is not HTTP"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: 1\r\n\r\n", 400, "is not HTTP"),
        (
            b"POST /infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
            "is not HTTP",
        ),
        (b"hello\r\n\r\n", 400, "is not HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "is not HTTP"),
        (b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n", 505, "use HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "use HTTP/1.1"),
    ],
)
async def test_nonsense_gets_its_error(data: bytes, status: int, told: str) -> None:
    """The status, a sentence in JSON, and a daemon that goes on."""
    async with serving(text_events("a")) as served:
        raw, got, headers, body = await answer_to(served, data)
        assert got == status
        assert told in str(body["error"])
        if headers.get("connection") == "close":
            assert await raw.read_to_end() == b""
            raw = await served.connect()
        await raw.send(infer_bytes())
        assert (await raw.answer())[0] == 200


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n", b"\n", b"\r\n\n"])
async def test_empty_lines_before_a_request_are_skipped(blank: bytes) -> None:
    """First on a connection, behind a request, ahead of one that was sent ahead, and byte by byte."""
    async with serving(text_events("a"), header_timeout_s=0.3) as served:
        raw = await served.connect()
        await raw.send(blank + HEALTH + blank + infer_bytes() + blank)
        assert (await raw.answer())[2] == b"ok"
        assert (await raw.answer())[0] == 200
        await trio.sleep(0.5)  # No request has begun, so its headers cannot be late.
        for byte in blank + HEALTH:
            await raw.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert (await raw.answer())[2] == b"ok"


async def test_empty_lines_are_no_requests() -> None:
    """Who sends nothing else gets nothing, and is let go as one whose headers do not come."""
    async with serving(header_timeout_s=0.3) as served:
        raw = await served.connect()
        await raw.send(b"\r\n" * 100)
        assert await raw.read_to_end() == b""
        raw = await served.connect()
        await raw.send(b"\r\n\r")
        await raw.stream.send_eof()
        assert (await raw.answer())[0] == 400
        raw = await served.connect()
        await raw.send(b"\r\n")
        await raw.stream.send_eof()
        assert await raw.read_to_end() == b""


@pytest.mark.parametrize(
    "rest", [b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"X: " + b"x" * 40_000 + b"\r\n\r\n"]
)
async def test_head_is_refused_without_a_body(rest: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """An answer to HEAD has no body, also when it is a refusal that the app never saw."""
    async with serving() as served:
        raw = await served.connect()
        await raw.send(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n" + rest)
        head, _, body = (await raw.read_to_end()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 4")
        assert body == b""
    assert not [record for record in caplog.records if "broke" in record.getMessage()]


async def test_a_content_type_may_have_parameters() -> None:
    """`application/json; charset=utf-8` is application/json, in any case."""
    async with serving(text_events("a")) as served:
        raw = await served.connect()
        await raw.send(post(b'{"prompt":"x"}', "Content-Type: Application/JSON; charset=utf-8\r\n"))
        assert (await raw.answer())[0] == 200


async def test_a_large_body_is_refused_before_it_is_read() -> None:
    """413 comes after the headers alone, and says that the connection closes."""
    async with serving() as served:
        raw = await served.connect()
        await raw.send(
            f"POST /infer HTTP/1.1\r\nHost: localhost\r\n{JSON_TYPE}Content-Length: 10000000\r\n\r\n".encode()
        )
        status, headers, body = await raw.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert json.loads(body)["details"] == {"max_body_bytes": 1 << 20}


@pytest.mark.parametrize("length", [b"1048577", b"9" * 20, b"9" * 23, b"0" * 30 + b"1048577", b"1" * 9000])
async def test_a_declared_length_is_too_large_however_many_digits_it_has(length: bytes) -> None:
    """413, also where it is more than a parser reads; one that is none, or only long, is a 400."""
    async with serving() as served:
        head = b"POST /infer HTTP/1.1\r\nHost: localhost\r\n" + JSON_TYPE.encode()
        for sent, status in (
            (b"Content-Length: " + length, 413),
            (b"content-length:\t" + length + b" ", 413),
            (b"Content-Length: " + length + b"x", 400),
            (b"Content-Length: " + b"0" * 30 + b"5", 400),
            (b"Content-Length: -5\r\nX-Content-Length: " + length, 400),
            (b"Content-Length: x\r\n\r\nContent-Length: " + length, 400),
        ):
            raw = await served.connect()
            await raw.send(head + sent + b"\r\n\r\n")
            got, headers, body = await raw.answer()
            assert (got, headers["connection"]) == (status, "close")
            assert json.loads(body)["type"] == ("body_too_large" if status == 413 else "invalid_request")


@pytest.mark.slow
def test_a_long_length_that_is_none_takes_no_time() -> None:
    """30,000 zeros and a letter: whoever tries each way to part them takes minutes of the event loop."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"0" * 30_000 + b"x\r\n\r\n"
    began = time.process_time()
    refusal = malformed(h11.RemoteProtocolError("bad Content-Length"), head, HttpLimits())
    assert refusal.status == 400
    assert time.process_time() - began < 5


def chunked(path: str) -> bytes:
    """The head of a request whose body comes in chunks."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{JSON_TYPE}Transfer-Encoding: chunked\r\n\r\n".encode()
    )


@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions", "/api/chat"])
@pytest.mark.parametrize("chunks", [b"100001\r\n", b"F" * 20 + b"\r\n{", b"1\r\n{\r\n100000;ext=1\r\n"])
async def test_a_chunk_that_makes_a_body_too_large_is_refused_by_its_size(chunks: bytes, path: str) -> None:
    """413 in the dialect's envelope when the size of the chunk is there, not when its last byte is."""
    async with serving(text_events("a")) as served:
        raw = await served.connect()
        await raw.send(chunked(path))
        await trio.testing.wait_all_tasks_blocked(0.001)
        await raw.send(chunks)
        status, headers, body = await raw.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert "more than 1048576 bytes" in body.decode()
        assert (b'"type":"body_too_large"' in body) == (path == "/infer")


async def test_chunks_that_fit_together_are_read_to_the_end() -> None:
    """All of them may be as large as a body may be, and the connection goes on."""
    async with serving(text_events("a")) as served:
        raw = await served.connect()
        await raw.send(chunked("/infer") + b'9\r\n{"prompt"\r\nFFFF7\r\n' + b"x" * 0xFFFF7 + b"\r\n0\r\n\r\n")
        status, headers, body = await raw.answer()
        assert (status, headers.get("connection")) == (400, None)
        assert b"not JSON" in body
        await raw.send(infer_bytes())
        assert (await raw.answer())[0] == 200


async def test_a_chunk_is_too_large_for_who_reads_it_only() -> None:
    """A route that takes no body answers, and the connection closes."""
    async with serving() as served:
        raw = await served.connect()
        await raw.send(chunked("/healthz").replace(b"POST", b"GET") + b"FFFFFFFF\r\n")
        status, headers, body = await raw.answer()
        assert (status, headers["connection"], body) == (200, "close", b"ok")


@pytest.mark.parametrize("in_chunks", [False, True])
async def test_a_client_that_sends_all_of_a_large_body_can_read_its_answer(in_chunks: bool) -> None:
    """The daemon takes in what still comes, without keeping it, so that the 413 is not lost in a reset."""
    async with serving() as served:
        raw = await served.connect()
        body = b"x" * 10_000_000
        if in_chunks:
            await raw.send(chunked("/infer") + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
        else:
            await raw.send(post(body))
        status, headers, _ = await raw.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert await raw.read_to_end() == b""


async def test_who_asks_before_sending_is_told_in_time() -> None:
    """`Expect: 100-continue` gets 100 for a body that fits, and 413 instead of it for one that does not."""
    async with serving(text_events("a")) as served:
        raw = await served.connect()
        data = infer_bytes(headers="Expect: 100-continue\r\n")
        head, mark, body = data.partition(b"\r\n\r\n")
        await raw.send(head + mark)
        assert await raw.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        await raw.send(body)
        assert (await raw.answer())[0] == 200
        raw = await served.connect()
        expecting = JSON_TYPE + "Expect: 100-continue\r\n"
        await raw.send(
            f"POST /infer HTTP/1.1\r\nHost: localhost\r\n{expecting}Content-Length: 10000000\r\n\r\n".encode()
        )
        assert (await raw.read_some()).startswith(b"HTTP/1.1 413")


async def test_a_small_body_of_the_wrong_type_costs_no_connection() -> None:
    """415 is told after the body was read, so the next request can use the same connection."""
    async with serving(text_events("a")) as served:
        raw = await served.connect()
        data = post(b'{"prompt":"x"}', "Content-Type: text/plain\r\n")
        await raw.send(data[:-5])
        await trio.sleep(0.05)
        await raw.send(data[-5:])
        status, headers, _ = await raw.answer()
        assert status == 415
        assert "connection" not in headers
        await raw.send(infer_bytes())
        assert (await raw.answer())[0] == 200


@pytest.mark.slow
async def test_a_slow_header_is_cut_short() -> None:
    """Who trickles its headers has `header_timeout_s` for all of them, not for each byte."""
    async with serving(header_timeout_s=0.4) as served:
        raw = await served.connect()
        began = trio.current_time()
        with trio.move_on_after(5):
            for byte in b"GET /healthz HTTP/1.1\r\nX-Slow: " + b"x" * 1000:
                await raw.send(bytes([byte]))
                await trio.sleep(0.05)
                if trio.current_time() - began > 0.6:
                    break
        status, _, body = await raw.answer()
        assert status == 408
        assert b"took longer than 0.4 s" in body
        assert trio.current_time() - began < 20


@pytest.mark.slow
async def test_a_slow_body_is_cut_short() -> None:
    """A body that does not come is 408 after `body_timeout_s`."""
    async with serving(body_timeout_s=0.3) as served:
        raw = await served.connect()
        await raw.send(infer_bytes()[:-3])
        status, headers, body = await raw.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert json.loads(body)["type"] == "body_too_slow"


async def test_an_idle_connection_ends() -> None:
    """A client that says nothing is let go after `keep_alive_s`, and so is one that has finished."""
    async with serving(keep_alive_s=0.3) as served:
        raw = await served.connect()
        assert await raw.read_to_end() == b""
        raw = await served.connect()
        await raw.send(HEALTH)
        assert (await raw.answer())[0] == 200
        assert await raw.read_to_end() == b""


async def test_large_headers_are_refused() -> None:
    """Headers have a bound, and it is told."""
    async with serving(max_header_bytes=2000) as served:
        raw = await served.connect()
        await raw.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 5000)
        status, _, body = await raw.answer()
        assert status == 431
        assert b"more than 2000 bytes" in body
        assert served.sample("modeld_http_requests_total", path="other", method="other", status="431") == 1
        raw = await served.connect()
        await raw.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 5000 + b"\r\n\r\n")
        assert (await raw.answer())[0] == 431


async def test_a_request_that_ends_in_the_middle_is_told_so() -> None:
    """Half a request and then the end of the stream: 400 for who still reads."""
    async with serving() as served:
        for data in (HEALTH[:-4], infer_bytes()[:-3]):
            raw = await served.connect()
            await raw.send(data)
            await raw.stream.send_eof()
            assert (await raw.answer())[0] == 400


async def test_an_upgrade_to_http2_is_ignored() -> None:
    """`Upgrade: h2c` is answered in HTTP/1.1, as RFC 9110 allows."""
    async with serving() as served:
        raw = await served.connect()
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        await raw.send(HEALTH[:-2] + upgrade)
        assert (await raw.answer())[2] == b"ok"
        await raw.send(HEALTH)
        assert (await raw.answer())[2] == b"ok"
