# SPDX-License-Identifier: GPL-3.0-only
"""The room of operators in the OpenAPI document. Pure."""

from __future__ import annotations

from modeld.dialects.common.streaming import NDJSON_TYPE
from modeld.dialects.native import (
    SSE_TYPE,
    LoadBody,
    ModelBody,
    OperationsBody,
    PinBody,
    PlanBody,
    SwitchBody,
    UnloadBody,
)
from modeld.domain.daemon_events import Kind
from modeld.domain.operation import OperationStatus
from modeld.http.openapi.parts import MODEL_IN_PATH, SSE_EVENT, Json, ref, refusal
from modeld.scheduler.plan import Plan

CONTROL_BODIES = (
    LoadBody,
    UnloadBody,
    SwitchBody,
    PinBody,
    PlanBody,
    Plan,
    ModelBody,
    OperationStatus,
    OperationsBody,
)

_OPERATION: Json = {
    "name": "operation",
    "in": "path",
    "required": True,
    "description": "Id of the operation",
    "schema": {"type": "string"},
    "example": "5f1d2b9a0c3e",
}
_WAIT: Json = {
    "name": "wait",
    "in": "query",
    "description": "Answer when it has ended, or after so long: `30s`, or seconds; an hour at most",
    "schema": {"type": "string"},
}
_REFUSALS = {
    400: "The body is not JSON, or a key, type or value in it is wrong",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body has more than `max_body_bytes` bytes",
    415: "A body was sent, and `Content-Type` is not application/json",
    409: "The model is pinned, and is to be unloaded",
    429: "Too many operations run",
    503: "The daemon is shutting down, or the model failed and is tried again later",
    507: "The model does not fit in the memory budget",
}
_BEGUN = {
    202: "The operation has begun, or was done at once",
    200: "It ended while that was waited for",
}


def control_paths() -> Json:
    """Return the paths and what they take and give."""
    return {
        "/models/{model}/load": {
            "post": _begin(
                "Load a model",
                "Shares the load with requests that wait for the model. Done when it is ready.",
                "LoadBody",
                {"keep_alive": "10m"},
                without=(409,),
            )
        },
        "/models/{model}/unload": {
            "post": _begin(
                "Unload a model",
                "It takes no new requests and goes when it is idle; who waits is kept, and loads it again. "
                "With `force` its streams end with `finish_reason: shutdown`, and who waits is refused.",
                "UnloadBody",
                {"force": False},
                without=(507,),
            )
        },
        "/models/{model}/switch": {
            "post": _begin(
                "Load a model, and unload all others that are not pinned",
                "The others go once it is ready, as far as it does not need their memory before.",
                "SwitchBody",
                {},
                without=(409,),
            )
        },
        "/models/{model}/pin": {
            "post": {
                "summary": "Pin a model, or let it go",
                "description": "A pinned model makes no room for others. Holds until the daemon ends.",
                "parameters": [MODEL_IN_PATH],
                "requestBody": _takes("PinBody", {"pinned": True}),
                "responses": {"200": _gives("The model", "ModelBody"), **_refusals(409, 429, 503, 507)},
            }
        },
        "/plan": {
            "post": {
                "summary": "What would happen if a model were loaded now",
                "description": "Does it fit, who goes for it and why, and how long does it take: the answer "
                "of the scheduler's own rules, played on a copy. Nothing is loaded.",
                "requestBody": _takes("PlanBody", {"model": "tinyllama-q4", "context": 4096}),
                "responses": {"200": _gives("The plan", "Plan"), **_refusals(409, 429, 503, 507)},
            }
        },
        "/operations": {
            "get": {
                "summary": "List the latest operations",
                "responses": {"200": _gives("The operations", "OperationsBody")},
            }
        },
        "/operations/{operation}": {
            "get": _known("Tell of an operation", [_OPERATION, _WAIT]),
            "delete": _known("Give an operation up; what others wait for goes on", [_OPERATION]),
        },
    }


def _begin(summary: str, about: str, takes: str, example: Json, *, without: tuple[int, ...]) -> Json:
    answers = {str(status): _gives(text, "OperationStatus") for status, text in _BEGUN.items()}
    answers["202"]["headers"] = {
        "Location": {"description": "Path of the operation", "schema": {"type": "string"}}
    }
    return {
        "summary": summary,
        "description": about,
        "parameters": [MODEL_IN_PATH, _WAIT],
        "requestBody": _takes(takes, example),
        "responses": {**answers, **_refusals(*without)},
    }


def _known(summary: str, parameters: list[Json]) -> Json:
    known = {
        400: "`wait` is no duration",
        404: "There is no such operation, or it ended long ago",
    }
    refused = {str(status): refusal(status, text) for status, text in known.items()}
    if _WAIT not in parameters:
        del refused["400"]
    return {
        "summary": summary,
        "parameters": parameters,
        "responses": {"200": _gives("The operation", "OperationStatus"), **refused},
    }


def _takes(schema: str, example: Json) -> Json:
    content = {"schema": ref(schema), "examples": {"plain": {"value": example}}}
    return {"required": False, "content": {"application/json": content}}


def _gives(text: str, schema: str) -> Json:
    return {"description": text, "content": {"application/json": {"schema": ref(schema)}}}


def _refusals(*without: int) -> Json:
    return {str(status): refusal(status, text) for status, text in _REFUSALS.items() if status not in without}


# ----------------------------------------------------------------------
# What the OpenAPI document says of `GET /events`. Pure.

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
