# SPDX-License-Identifier: GPL-3.0-only
"""How values become lines on the wire: newline-delimited JSON and its keep-alive."""

from __future__ import annotations

import msgspec

NDJSON_TYPE = "application/x-ndjson"
"""Content type of a stream with one JSON value per line."""

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
