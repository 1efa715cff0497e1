# SPDX-License-Identifier: GPL-3.0-only
"""The sentences for what is not HTTP."""

from __future__ import annotations

import h11
import pytest

from modeld.http.server.request_checks import why_malformed

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = GET + b"Transfer-Encoding: chunked\r\n\r\n"


def complaint_about(data: bytes, *, ended: bool = False) -> str:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    if ended:
        connection.receive_data(b"")
    try:
        while connection.next_event() is not h11.NEED_DATA:
            pass
    except h11.RemoteProtocolError as error:
        return why_malformed(str(error))
    return "nothing"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"hello\r\n\r\n", 'the request line must read METHOD TARGET HTTP/1.1: "hello"'),
        (b"it's \"x\" b'y'\r\n\r\n", 'the request line must read METHOD TARGET HTTP/1.1: "it\'s "x" b\'y\'"'),
        (b"\x16\x03\x01\r\n\r\n", 'the request line must read METHOD TARGET HTTP/1.1: "\\x16\\x03\\x01"'),
        (b"\x16\x03\x01", "the request line must read METHOD TARGET HTTP/1.1"),
        (b"x" * 300 + b"\r\n\r\n", f'the request line must read METHOD TARGET HTTP/1.1: "{"x" * 60}..."'),
        (
            GET + b"Bad Name: 1\r\n\r\n",
            'a header must read Name: value, without control characters: "Bad Name: 1"',
        ),
        (b"GET / HTTP/1.1\r\n x: 1\r\n\r\n", "the first header begins with a blank"),
        (b"GET / HTTP/1.1\r\n\r\n", "the Host header is missing"),
        (GET + b"Host: y\r\n\r\n", "there is more than one Host header"),
        (GET + b"Content-Length: -5\r\n\r\n", "Content-Length must be a whole number of bytes"),
        (GET + b"Content-Length: 5, 6\r\n\r\n", "there are two different Content-Length headers"),
        (GET + b"Transfer-Encoding: gzip\r\n\r\n", "the only Transfer-Encoding that is taken is chunked"),
        (
            CHUNKED + b"zz\r\n",
            'a chunk of the body must begin with its size, up to 20 hexadecimal digits: "zz\\r\\n"',
        ),
        (CHUNKED + b"1\r\nabc", 'a chunk of the body is longer than the size that it begins with: "bc"'),
    ],
)
def test_what_is_wrong_is_told_in_words(data: bytes, sentence: str) -> None:
    """No representation of a Python value is shown, and of the bytes only a short, printable part."""
    assert complaint_about(data) == f"the request is not HTTP: {sentence}"


def test_a_request_that_ends_too_early_is_told_how_far_it_came() -> None:
    """Headers and bodies that end in the middle are told apart."""
    assert complaint_about(GET, ended=True) == "the request is not HTTP: it ended in the middle"
    cut = complaint_about(GET + b"Content-Length: 9\r\n\r\nabc", ended=True)
    assert cut == "the request is not HTTP: its body ended too early (received 3 bytes, expected 9)"
    assert complaint_about(CHUNKED + b"5\r\nab", ended=True).endswith("too early (incomplete chunked read)")
