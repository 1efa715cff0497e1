# SPDX-License-Identifier: GPL-3.0-only
"""HTTPS: the same answers as over HTTP, streams above all, and an end that clients can tell from a cut."""

from __future__ import annotations

import shutil
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from support.backend import finish, text_events
from support.http_server import infer_bytes, lines_of, serving, unverified
from support.keys import bearer, ring

from modeld.cli.preflight import NotOk, Ok, check_tls
from modeld.domain.request_events import Delta, Started, Usage
from modeld.http.server.tls import BadTls, Tls

FILES = Path(__file__).parent / "fixtures"
ASK = {"prompt": "Hello", "stream": False}


def tls(name: str = "server") -> Tls:
    return Tls(FILES / f"{name}.pem", FILES / f"{name}.key")


async def test_a_page_over_http_is_another_origin() -> None:
    """Same host and port, and yet not this server's: it may be anybody's on the way."""
    async with serving(text_events("a"), tls=tls()) as served, served.client() as client:
        for origin, status in ((served.url, 200), (served.url.replace("https:", "http:"), 403)):
            answer = await client.post("/infer", json=ASK, headers={"Origin": origin})
            assert answer.status_code == status


async def test_answers_are_those_of_http() -> None:
    """JSON, errors, keys and keep-alive: only the bytes on the wire differ."""
    keyring, texts = ring(alice={"scopes": ["infer", "metrics"]})
    async with serving(text_events("a", "b"), tls=tls(), keyring=keyring) as served:
        assert served.url.startswith("https://127.0.0.1:")
        async with served.client() as client:
            assert (await client.get("/healthz")).text == "ok"
            assert (await client.post("/infer", json=ASK)).status_code == 401
            answer = await client.post("/infer", json=ASK, headers=bearer(texts["alice"]))
            assert answer.json()["content"] == "ab"
            large = await client.post("/infer", json={"prompt": "x" * 2**21}, headers=bearer(texts["alice"]))
            assert large.status_code == 413
            assert (await client.get("/status", headers=bearer(texts["alice"]))).status_code == 200


async def test_a_stream_arrives_token_by_token() -> None:
    """Each line is readable before the next one is put, and nothing of it is written past TLS."""
    async with serving(tls=tls()) as served:
        raw = await served.connect()
        await raw.infer()
        ticket = await served.backend.ticket()
        ticket.put(Started(usage=Usage()))
        for word in ("one", "two", "three"):
            ticket.put(Delta(text=word))
            await raw.read_until(f'{{"token":"{word}","done":false}}'.encode())
        finish(ticket, tokens=3)
        assert b'"finish_reason":"stop"' in await raw.read_until(b"0\r\n\r\n")


async def test_a_long_stream_is_whole() -> None:
    """Megabytes of lines, faster than they are read, come in their order."""
    words = [f"{number}:" + "x" * 500 for number in range(1500)]

    async with serving(text_events(*words), tls=tls()) as served, served.client() as client:
        answer = await client.post("/infer", json={"prompt": "x"})
        lines = lines_of(answer.content)
        assert [line["token"] for line in lines[:-1]] == words
        assert lines[-1]["done"] is True


async def test_an_answer_that_ends_the_connection_ends_it_properly() -> None:
    """With `Connection: close` TLS's own goodbye follows the last byte, so the client knows that is all."""
    async with serving(text_events("a"), tls=tls()) as served:
        raw = await served.connect()
        await raw.send(infer_bytes(headers="Connection: close\r\n", stream=False))
        data = await raw.read_to_end()
        assert data.startswith(b"HTTP/1.1 200")
        assert b'"content":"a"' in data


async def test_leaving_frees_the_slot() -> None:
    """A reset, a close and a proper goodbye all end the request at once."""
    async with serving(tls=tls()) as served:
        for number, way in enumerate(("reset", "close", "goodbye")):
            raw = await served.connect()
            await raw.infer()
            ticket = await served.backend.ticket(number)
            ticket.put(Started(usage=Usage()))
            ticket.put(Delta(text="a"))
            await raw.read_until(b"\n")
            if way == "goodbye":
                with trio.move_on_after(10), suppress(trio.BrokenResourceError):
                    await raw.stream.unwrap()
            elif way == "reset":
                raw.tcp.setsockopt(*RESET)
                raw.tcp.socket.close()
            else:
                raw.tcp.socket.close()
            await served.backend.wait_closed(number)
            assert served.backend.closed[number] is ticket


RESET = (1, 13, b"\1\0\0\0\0\0\0\0")
"""SOL_SOCKET, SO_LINGER, on for no time: closing resets."""


async def test_who_speaks_http_to_it_or_nothing_harms_nobody() -> None:
    """Plain HTTP, garbage and silence end their own connection; the next client is served."""
    async with serving(text_events("a"), tls=tls(), header_timeout_s=0.2) as served:
        for data in (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x16\x03\x01\xff\xff" + b"\0" * 200,
            b"",
        ):
            tcp = await trio.open_tcp_stream("127.0.0.1", served.port)
            if data:
                await tcp.send_all(data)
            with trio.fail_after(30):
                try:
                    while await tcp.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
            await tcp.aclose()
        async with served.client() as client:
            assert (await client.post("/infer", json=ASK)).status_code == 200


async def test_a_reader_that_takes_nothing_is_cut() -> None:
    """The write deadline holds over TLS, too."""
    async with serving(text_events(*["x" * 60_000] * 400), tls=tls(), write_timeout_s=0.3) as served:
        served.backend.max_backlog_bytes = 1 << 30
        raw = await served.connect()
        await raw.infer()
        await served.backend.wait_closed(0)
        assert served.backend.closed == served.backend.tickets


async def test_nothing_older_than_tls_1_2_is_spoken() -> None:
    """And only HTTP/1.1 is offered."""
    async with serving(tls=tls()) as served:
        tcp = await trio.open_tcp_stream("127.0.0.1", served.port)
        context = unverified()
        context.set_alpn_protocols(["h2", "http/1.1"])
        stream = trio.SSLStream(tcp, context)
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == "http/1.1"
        assert stream.getpeercert(binary_form=True) == der("server")
        await tcp.aclose()
    assert tls().context.minimum_version >= ssl.TLSVersion.TLSv1_2


def der(name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((FILES / f"{name}.pem").read_text())


async def test_a_new_certificate_is_taken_and_a_bad_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """New connections get it after a reload; a key that does not belong to it leaves all as it was."""
    for name in ("cert.pem", "key.pem"):
        shutil.copy(FILES / ("server.pem" if name == "cert.pem" else "server.key"), tmp_path / name)
    its = Tls(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with serving(tls=its) as served:

        async def shown() -> bytes | None:
            tcp = await trio.open_tcp_stream("127.0.0.1", served.port)
            stream = trio.SSLStream(tcp, unverified())
            await stream.do_handshake()
            found = stream.getpeercert(binary_form=True)
            await tcp.aclose()
            return found

        assert await shown() == der("server")
        shutil.copy(FILES / "other.pem", tmp_path / "cert.pem")
        its.reload()
        assert "the certificate stays as it was" in caplog.text
        assert await shown() == der("server")
        shutil.copy(FILES / "other.key", tmp_path / "key.pem")
        its.reload()
        assert await shown() == der("other")


@pytest.mark.parametrize(
    ("cert", "key", "why"),
    [
        ("none.pem", "server.key", "cannot be read: no such file"),
        ("server.pem", "none.key", "cannot be read: no such file"),
        ("server.pem", "other.key", "is not the key of the certificate"),
        ("other.pem", "encrypted.key", "passphrase"),
        ("server.key", "server.key", "no PEM file with a certificate"),
        ("server.pem", "README.md", "no PEM file with a private key"),
    ],
)
def test_bad_files_fail_the_preflight(cert: str, key: str, why: str) -> None:
    """With a sentence that names the file, and without a question at the terminal."""
    verdict = check_tls(FILES / cert, FILES / key)
    assert isinstance(verdict, NotOk)
    assert why in verdict.why
    assert check_tls(FILES / "server.pem", FILES / "server.key") == Ok()
    with pytest.raises(BadTls):
        Tls(FILES / cert, FILES / key)
