# SPDX-License-Identifier: GPL-3.0-only
"""Makes answers: JSON and text, with their compression, and streams."""

from __future__ import annotations

import gzip

from quart import Response
from quart.wrappers.response import ResponseBody
from werkzeug.datastructures import Headers
from werkzeug.http import parse_accept_header

from modeld.dialects.framing import json_bytes

MOST_GZIP_BYTES = 1024 * 1024
"""Above it, compression would hold up the event loop, and with it all streams, for more than some 50 ms."""
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
