# SPDX-License-Identifier: GPL-3.0-only
"""Which request heads are served: method, version, size, framing and target. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

import h11

from modeld.http.errors import body_too_large
from modeld.http.limits import Limits
from modeld.http.malformed import why_malformed
from modeld.telemetry.http_metrics import METHODS

_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]+)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
"""Not with `0*` in front: the two together take time with the square of a length."""
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


class Refusal(NamedTuple):
    """What is answered in place of a request: a status, the kind of error, and a sentence."""

    status: int
    kind: str
    message: str


def target_of(request: h11.Request, limits: Limits) -> bytes | Refusal:
    """Return path and query of a request that can be served, or else why it cannot."""
    if request.http_version not in (b"1.0", b"1.1"):
        return Refusal(
            505,
            "invalid_request",
            f"HTTP/{request.http_version.decode()} is not spoken here; use HTTP/1.1",
        )
    if request.method != request.method.upper():
        return _unknown_method(request.method.decode("ascii"))
    if _is_ambiguous(request):
        return Refusal(
            400,
            "invalid_request",
            "send a Content-Length or a Transfer-Encoding, not both; HTTP/1.0 has no Transfer-Encoding",
        )
    size = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
    if size > limits.max_header_bytes:
        return large_headers(limits)
    target = origin_form(request.target)
    if target is None:
        return Refusal(400, "invalid_request", "the request target is neither a path nor a URL")
    return target


def large_headers(limits: Limits) -> Refusal:
    """Return the refusal of a head that is larger than any may be."""
    return Refusal(
        431,
        "invalid_request",
        f"the request's headers have more than {limits.max_header_bytes} bytes; "
        "send less, or raise max_header_bytes",
    )


def is_too_large(request: h11.Request, limits: Limits) -> bool:
    """Whether the body is declared larger than any may be."""
    declared = next((value for name, value in request.headers if name == b"content-length"), b"0")
    return int(declared) > limits.max_body_bytes


def malformed(error: h11.RemoteProtocolError, received: bytes, limits: Limits) -> Refusal:
    """Return the refusal of bytes that h11 cannot read; `received`: what it had when the request began."""
    if error.error_status_hint == 431:
        return large_headers(limits)
    if str(error) == "bad Content-Length" and _declares_too_much(received, limits):
        large = body_too_large(limits.max_body_bytes)
        return Refusal(large.status, large.kind, str(large))
    return Refusal(error.error_status_hint, "invalid_request", why_malformed(str(error)))


def _declares_too_much(received: bytes, limits: Limits) -> bool:
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


def _is_ambiguous(request: h11.Request) -> bool:
    """Whether another server on the way could see the end of this request elsewhere (RFC 9112, 6.1)."""
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" not in names:
        return False
    return b"content-length" in names or request.http_version == b"1.0"


def _unknown_method(method: str) -> Refusal:
    """Methods are case-sensitive (RFC 9110, 9.1), and what is behind this protocol ignores that."""
    known = method.upper() if method.upper() in METHODS else None
    hint = f"; did you mean {known}?" if known else "; methods are written in capitals"
    return Refusal(501, "method_not_allowed", f'there is no method "{method[:20]}"{hint}')
