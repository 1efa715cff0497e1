# SPDX-License-Identifier: GPL-3.0-only
"""Check a request's head: method, version, size, framing and target. Pure."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import NamedTuple

import h11

from modeld.http.errors import body_too_large
from modeld.http.limits import HttpLimits
from modeld.telemetry.metrics import METHODS

# ----------------------------------------------------------------------
# Says in plain words why bytes are not HTTP. Pure.
#
# h11 tells it with the representation of what it read in it; clients get a sentence, and of the bytes
# only a short, printable part.

SHOWN_BYTES = 60
"""Of what a client sent, so much is shown to it again."""

_TOLD = re.compile(
    r"""(?P<what>.*?):?\ (?:bytearray\()?(?P<data>b(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")).*""",
    re.DOTALL | re.VERBOSE,
)

_SENTENCES: Mapping[str, str] = {
    "illegal request line": "the request line must read METHOD TARGET HTTP/1.1",
    "no request line received": "there is no request line",
    "illegal header line": "a header must read Name: value, without control characters",
    "Illegal header name": "a header's name has a character that may not be there",
    "Illegal header value": "a header's value has a character that may not be there",
    "illegal chunk header": "a chunk of the body must begin with its size, up to 20 hexadecimal digits",
    "malformed chunk footer": "a chunk of the body is longer than the size that it begins with",
    "continuation line at start of headers": "the first header begins with a blank",
    "Missing mandatory Host: header": "the Host header is missing",
    "Found multiple Host: headers": "there is more than one Host header",
    "bad Content-Length": "Content-Length must be a whole number of bytes",
    "conflicting Content-Length headers": "there are two different Content-Length headers",
    "multiple Transfer-Encoding headers": "there is more than one Transfer-Encoding header",
    "Only Transfer-Encoding: chunked is supported": "the only Transfer-Encoding that is taken is chunked",
    "peer unexpectedly closed connection": "it ended in the middle",
}


def why_malformed(told: str) -> str:
    """Return a sentence for the text of an `h11.RemoteProtocolError`."""
    found = _TOLD.fullmatch(told)
    what, data = (found["what"], found["data"]) if found else (told, None)
    if what.startswith("peer closed connection without sending complete message body"):
        return f"the request is not HTTP: its body ended too early {what[what.index('(') :]}"
    sentence = f"the request is not HTTP: {_SENTENCES.get(what, what)}"
    return sentence if data is None else f'{sentence}: "{_shown(ast.literal_eval(data))}"'


def _shown(data: bytes) -> str:
    """Return the first bytes of `data`, with escapes for what is not printable ASCII."""
    text = data[:SHOWN_BYTES].decode("latin-1").encode("unicode_escape").decode("ascii")
    return f"{text}..." if len(data) > SHOWN_BYTES else text


# ----------------------------------------------------------------------

_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]+)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
"""Not with `0*` in front: the two together take time with the square of a length."""
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


class HeadRefusal(NamedTuple):
    """What is answered in place of a request: a status, the kind of error, and a sentence."""

    status: int
    kind: str
    message: str


def target_of(request: h11.Request, limits: HttpLimits) -> bytes | HeadRefusal:
    """Return path and query of a request that can be served, or else why it cannot."""
    if request.http_version not in (b"1.0", b"1.1"):
        return HeadRefusal(
            505,
            "invalid_request",
            f"HTTP/{request.http_version.decode()} is not spoken here; use HTTP/1.1",
        )
    if request.method != request.method.upper():
        return _unknown_method(request.method.decode("ascii"))
    if _is_ambiguous(request):
        return HeadRefusal(
            400,
            "invalid_request",
            "send a Content-Length or a Transfer-Encoding, not both; HTTP/1.0 has no Transfer-Encoding",
        )
    size = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
    if size > limits.max_header_bytes:
        return large_headers(limits)
    target = origin_form(request.target)
    if target is None:
        return HeadRefusal(400, "invalid_request", "the request target is neither a path nor a URL")
    return target


def large_headers(limits: HttpLimits) -> HeadRefusal:
    """Return the refusal of a head that is larger than any may be."""
    return HeadRefusal(
        431,
        "invalid_request",
        f"the request's headers have more than {limits.max_header_bytes} bytes; "
        "send less, or raise max_header_bytes",
    )


def is_too_large(request: h11.Request, limits: HttpLimits) -> bool:
    """Whether the body is declared larger than any may be."""
    declared = next((value for name, value in request.headers if name == b"content-length"), b"0")
    return int(declared) > limits.max_body_bytes


def malformed(error: h11.RemoteProtocolError, received: bytes, limits: HttpLimits) -> HeadRefusal:
    """Return the refusal of bytes that h11 cannot read; `received`: what it had when the request began."""
    if error.error_status_hint == 431:
        return large_headers(limits)
    if str(error) == "bad Content-Length" and _declares_too_much(received, limits):
        large = body_too_large(limits.max_body_bytes)
        return HeadRefusal(large.status, large.kind, str(large))
    return HeadRefusal(error.error_status_hint, "invalid_request", why_malformed(str(error)))


def _declares_too_much(received: bytes, limits: HttpLimits) -> bool:
    """Whether the only fault of a head is a length with more digits than h11 reads (20)."""
    found = _LENGTH.search(_END_OF_HEAD.split(received, 1)[0])
    if found is None:
        return False
    digits, most = found[1].lstrip(b"0"), b"%d" % limits.max_body_bytes
    return (len(digits), digits) > (len(most), most)


def origin_form(target: bytes) -> bytes | None:
    """Return the path and query of a request target, or None when it has none (RFC 9112, 3.2)."""
    if target.startswith(b"/") or target == b"*":
        return target
    scheme, found, rest = target.partition(b"://")
    if not found or scheme.lower() not in (b"http", b"https"):
        return None
    slash = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    path = rest[slash:]
    return path if path.startswith(b"/") else b"/" + path


def headers_of(request: h11.Request) -> list[tuple[bytes, bytes]]:
    """Return the headers; the host of an absolute target takes the place of Host (RFC 9112, 3.2.2)."""
    _, found, rest = request.target.partition(b"://")
    if request.target.startswith(b"/") or not found:
        return list(request.headers)
    authority = re.split(rb"[/?]", rest, maxsplit=1)[0]
    return [(b"host", authority), *((name, value) for name, value in request.headers if name != b"host")]


def _is_ambiguous(request: h11.Request) -> bool:
    """Whether another server on the way could see the end of this request elsewhere (RFC 9112, 6.1)."""
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" not in names:
        return False
    return b"content-length" in names or request.http_version == b"1.0"


def _unknown_method(method: str) -> HeadRefusal:
    """Methods are case-sensitive (RFC 9110, 9.1), and what is behind this protocol ignores that."""
    known = method.upper() if method.upper() in METHODS else None
    hint = f"; did you mean {known}?" if known else "; methods are written in capitals"
    return HeadRefusal(501, "method_not_allowed", f'there is no method "{method[:20]}"{hint}')


# ----------------------------------------------------------------------
# How large the body of a request says that it will be, as soon as it says so.


class BodySize:
    """Adds up the chunks of one body, with what the one under way still has to bring.

    Attributes:
      too_large: that is more than any body may have.
    """

    def __init__(self, parser: h11.Connection, most: int) -> None:
        self._parser = parser
        self._most = most
        self._taken = 0
        self.too_large = False

    def grew(self, size: int) -> bool:
        """Note that so many bytes were parsed; True when the body turns out to be too large by it."""
        if self.too_large:
            return False
        self._taken += size
        # h11 tells nobody what a chunk still has to bring; without its reader a body is refused once it came.
        reader: object = getattr(self._parser, "_reader", None)
        self.too_large = self._taken + getattr(reader, "_bytes_in_chunk", 0) > self._most
        return self.too_large
