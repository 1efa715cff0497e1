# SPDX-License-Identifier: GPL-3.0-only
"""What the OpenAPI document says of `GET /events`. Pure."""

from __future__ import annotations

from modeld.core.fleet_events import Kind
from modeld.dialects.framing import NDJSON_TYPE
from modeld.dialects.native import SSE_TYPE
from modeld.http.openapi_parts import SSE_EVENT, Json, ref, refusal

_LINE = (
    '{"seq":46,"run":"1a205316f2a","at_unix":1764000000.555,"uptime_ms":15000.0,"kind":"evicting",'
    '"model":"tinyllama-q4.gguf","cause":"room","reason":"idle, and makes room for qwen-q8.gguf; '
    'cheapest to lose: 2.0 s of loading, 0.4 requests a minute","for_model":"qwen-q8.gguf",'
    '"numbers":{"frees_mb":410.0,"need_mb":690.0,"free_mb":120.0,"reload_s":2.0,"uses_per_min":0.39}}'
)
_NAMES: Json = {"type": "array", "items": {"type": "string"}}
_KINDS: Json = {"type": "array", "items": {"enum": [kind.value for kind in Kind]}}
_PARAMETERS = (
    ("model", "query", "Only events of these models (ids, stems or aliases)", _NAMES),
    ("kind", "query", "Only events of these kinds", _KINDS),
    ("last_event_id", "query", "As the header `Last-Event-ID`", {"type": "string"}),
    ("Last-Event-ID", "header", "Go on after this event, if it is still kept", {"type": "string"}),
)


def events_operation() -> Json:
    """Return the operation."""
    return {
        "summary": "What the daemon does, live",
        "description": (
            "Server-sent events, or one JSON object a line for `Accept: application/x-ndjson`. The stream "
            "begins with what happens next, and ends when the daemon stops. Who reads too slowly gets an "
            "event `missed` with the number of events that are lost to him. A stream that is silent for "
            "15 s carries a comment, or an empty line. docs/events.md explains each kind."
        ),
        "parameters": [
            {"name": name, "in": place, "description": text, "schema": schema}
            for name, place, text, schema in _PARAMETERS
        ],
        "responses": {
            "200": {
                "description": "Events",
                "content": {
                    SSE_TYPE: {
                        "schema": SSE_EVENT,
                        "example": f"id: 1a205316f2a-46\nevent: evicting\ndata: {_LINE}\n\n",
                    },
                    NDJSON_TYPE: {
                        "schema": ref("FleetEvent"),
                        "example": f"{_LINE}\n",
                    },
                },
            },
            "400": refusal(400, "A parameter is unknown or wrong"),
            "404": refusal(404, "There is no such model"),
            "429": refusal(429, "Too many clients read the events already"),
        },
    }
