# SPDX-License-Identifier: GPL-3.0-only
"""Build responses: JSON and text with compression, and streams."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Mapping

from quart import Response
from quart.wrappers.response import ResponseBody
from werkzeug.datastructures import Headers
from werkzeug.http import parse_accept_header

from modeld.dialects.common.streaming import json_bytes
from modeld.quotas.meter import LimitStatus

MOST_GZIP_BYTES = 1024 * 1024
"""Above it, compression would hold up the event loop, and with it all streams, for more than some 50 ms."""
MOST_NOTICE_CHARACTERS = 1000
"""Clients take some 8 KiB of headers in all."""
LEAST_GZIP_BYTES = 512
"""Below this, compression gains nothing over a network packet."""


def json_reply(value: object, status: int = 200) -> Response:
    """Return `value` as JSON; bytes are JSON already."""
    data = value if isinstance(value, bytes) else json_bytes(value)
    return Response(data, status, content_type="application/json")


def text_reply(text: str, status: int = 200) -> Response:
    """Return plain text."""
    return Response(text, status, content_type="text/plain; charset=utf-8")


def stream_reply(body: ResponseBody | bytes, content_type: str) -> Response:
    """Return an answer that is written as it comes: nobody on the way is to keep or gather it."""
    response = Response(body, content_type=content_type)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def notice_headers(notices: Iterable[str]) -> dict[str, str]:
    """Return the header that tells what of a request is not kept; none without notices."""
    text = "; ".join(dict.fromkeys(notices))
    plain = "".join(sign if " " <= sign <= "~" else "?" for sign in text)
    return {"X-Modeld-Ignored": plain[:MOST_NOTICE_CHARACTERS]} if plain else {}


def compress(data: bytes, headers: Headers, accept_encoding: str) -> bytes:
    """Return `data` as it goes on the wire, and say so in the answer's headers."""
    if not LEAST_GZIP_BYTES <= len(data) <= MOST_GZIP_BYTES:
        return data
    headers.add("Vary", "Accept-Encoding")
    if "gzip" not in accept_encoding or parse_accept_header(accept_encoding).quality("gzip") <= 0:
        return data
    data = gzip.compress(data, compresslevel=5, mtime=0)
    headers["Content-Encoding"] = "gzip"
    headers["Content-Length"] = str(len(data))
    return data


# ----------------------------------------------------------------------
# `RateLimit` and `RateLimit-Policy`: what a key may have, and what is left of it. Pure.
#
# The form is that of draft-ietf-httpapi-ratelimit-headers-10: lists of structured fields (RFC 9651).
# `tokens` is no registered quota unit; there is none for them.


def rate_headers(standings: Iterable[LimitStatus]) -> Mapping[str, str]:
    """Return both headers, or none where there is no limit."""
    limits = tuple(standings)
    if not limits:
        return {}
    return {
        "RateLimit-Policy": ", ".join(map(_policy, limits)),
        "RateLimit": ", ".join(map(_service, limits)),
    }


def _policy(it: LimitStatus) -> str:
    window = "" if it.window_s is None else f";w={it.window_s}"
    unit = "" if it.unit == "requests" else f';qu="{it.unit}"'
    return f'"{it.policy}";q={it.quota}{window}{unit}'


def _service(it: LimitStatus) -> str:
    reset = "" if it.reset_s is None else f";t={math.ceil(it.reset_s)}"
    return f'"{it.policy}";r={it.left}{reset}'
