# SPDX-License-Identifier: GPL-3.0-only
"""How values become bytes on the wire: newline-delimited JSON, its keep-alive, and vectors."""

from __future__ import annotations

import struct

import msgspec

NDJSON_TYPE = "application/x-ndjson"
"""Content type of a stream with one JSON value per line."""

SSE_TYPE = "text/event-stream"
"""Content type of a stream of server-sent events."""

BLANK_LINE = b"\n"
"""Says "still here" in a silent stream. Readers of NDJSON skip empty lines."""

_encoder = msgspec.json.Encoder()


def line(value: msgspec.Struct) -> bytes:
    """Return `value` as one line of compact JSON, its end included."""
    return _encoder.encode(value) + b"\n"


def json_bytes(value: object) -> bytes:
    """Return `value` as compact JSON without a line end."""
    return _encoder.encode(value)


def json_string(text: str) -> bytes:
    """Return `text` as a JSON string, quotes included."""
    return _encoder.encode(text)


def number_list(vector: bytes) -> bytes:
    """Return a vector of 32-bit floats as a JSON list: nine digits, which give each of them back exactly."""
    count = len(vector) // 4
    return b"[%b]" % (b",".join([b"%.9g"] * count) % struct.unpack(f"<{count}f", vector))
