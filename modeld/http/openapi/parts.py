# SPDX-License-Identifier: GPL-3.0-only
"""What all rooms of the OpenAPI document are written with. Pure."""

from __future__ import annotations

from typing import Any

from modeld.dialects.common.streaming import NDJSON_TYPE, SSE_TYPE
from modeld.errors import ERRORS
from modeld.http.auth import scopes_for
from modeld.http.origin_checks import ANY_HOST, READING

Json = dict[str, Any]
"""A JSON object."""
SCHEMAS = "#/components/schemas/"

MODEL_IN_PATH: Json = {
    "name": "model",
    "in": "path",
    "required": True,
    "description": "Id or alias of the model",
    "schema": {"type": "string"},
    "example": "tinyllama-q4",
}
"""The parameter of paths that name a model."""

_ERROR: Json = {
    "error": "no model is called llama; see GET /models",
    "code": 404,
    "type": "model_not_found",
}

REFUSALS: dict[int, str] = {
    400: "The body is not JSON, or a key, type or value in it is wrong; or the prompt exceeds the context",
    404: "There is no such model",
    408: (
        "The body did not arrive in time. In the last line of a stream only: its reader fell too far behind"
    ),
    413: "The body has more than `max_body_bytes` bytes",
    415: "`Content-Type` is not application/json",
    422: "The grammar or schema cannot be compiled",
    429: "The queue is full, or the request waited longer than `max_wait`",
    500: "A defect of modeld or of the engine",
    503: (
        "The daemon is shutting down, the model failed and is tried again later, or the request's time "
        "will be over before its turn comes"
    ),
    504: "The request's time was over before its first token",
    507: "The model does not fit in the memory budget",
}

_ERRORS: tuple[tuple[str, str], ...] = (
    ("/v1/messages", "AnthropicError"),
    ("/v1/", "OpenAIError"),
    ("/api/", "OllamaError"),
    ("/completion", "LlamaError"),
    ("/embedding", "LlamaError"),
    ("/props", "LlamaError"),
    ("/slots", "LlamaError"),
    ("/models/load", "LlamaError"),
    ("/models/unload", "LlamaError"),
)
"""Prefixes of paths, and the schema of errors below them; the first that fits holds."""


SSE_EVENT: Json = {
    "type": "object",
    "description": "One event of the stream",
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "description": "JSON, or [DONE]"},
        "id": {"type": "string"},
    },
    "required": ["data"],
}
"""What each event of a stream is. (OpenAPI 3.1 has no word for the items of a stream; tools take them so.)"""


def error_schema(path: str) -> str:
    """Return the schema of errors of a path."""
    return next((schema for prefix, schema in _ERRORS if path.startswith(prefix)), "ErrorBody")


def ref(name: str) -> Json:
    """Return the reference to a schema."""
    return {"$ref": SCHEMAS + name}


def refusal(status: int, text: str, error: str = "ErrorBody") -> Json:
    """Return the answer of an error, with the kinds of it there are; `error` is the schema of its dialect."""
    kinds = sorted(kind for kind, error in ERRORS.items() if error.status == status)
    answer: Json = {
        "description": f"{text}. `type`: {', '.join(kinds)}",
        "content": {"application/json": {"schema": ref(error)}},
    }
    if status == 404 and error == "ErrorBody":
        answer["content"]["application/json"]["example"] = _ERROR
    if any(ERRORS[kind].default_retry_after_s is not None for kind in kinds):
        answer["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return answer


def operation(
    summary: str,
    *,
    error: str,
    takes: str | None = None,
    gives: str | None = None,
    lines: tuple[str, ...] = (),
    events: bool = False,
    example: Json | None = None,
    statuses: tuple[int, ...] = (),
    description: str = "",
) -> Json:
    """Return an operation of a dialect.

    Args:
      summary: what it is for.
      error: schema of its refusals.
      takes: schema of its body.
      gives: schema of its answer.
      lines: schemas of the lines of its stream.
      events: whether it streams server-sent events instead.
      example: a body.
      statuses: of its refusals; without any, all that there are.
      description: more of it.
    """
    answers: Json = {}
    if gives is not None:
        answers["application/json"] = {"schema": ref(gives)}
    if lines:
        answers[NDJSON_TYPE] = {"schema": {"oneOf": [ref(name) for name in lines]}}
    if events:
        answers[SSE_TYPE] = {"schema": SSE_EVENT}
    refusals = {status: text for status, text in REFUSALS.items() if not statuses or status in statuses}
    found: Json = {
        "summary": summary,
        "description": description,
        "responses": {
            **({"200": {"description": summary, "content": answers}} if answers else {}),
            **{str(status): refusal(status, text, error) for status, text in refusals.items()},
        },
    }
    if takes is not None:
        content: Json = {"schema": ref(takes), "examples": {"plain": {"value": example}}}
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    return found


# ----------------------------------------------------------------------
# What the OpenAPI document says of access: keys and their scopes, pages of other origins, hosts. Pure.

SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key, where keys are in force"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

_DENIALS: dict[int, str] = {
    401: "Keys are in force, and the request has none that is known",
    403: "The key may not do this",
    429: "A limit of the key is reached, or too many new keys wait to be checked",
}
"""What whoever needs a key may be told instead of anything else."""
_OTHER_ORIGIN = "The request comes from a web page whose origin `cors_allowed_origins` does not list"
_OTHER_HOST = "No keys are in force, and `Host` is a name that `allowed_hosts` does not list"


def with_access(document: Json) -> Json:
    """Add to each operation which keys it takes, and the refusals that come before it is looked at.

    No key at all is always right where no keys are in force.
    """
    for path, operations in document["paths"].items():
        scopes = sorted(scopes_for(path))
        for method, operation in operations.items():
            operation["security"] = [{"bearer": []}, {"apiKey": []}, {}] if scopes else []
            denials = dict(_DENIALS) if scopes else {}
            if scopes:
                operation["x-scopes"] = scopes
            if method.upper() not in READING:
                denials[403] = f"{denials[403]}. Or: {_OTHER_ORIGIN}" if scopes else _OTHER_ORIGIN
            if path not in ANY_HOST:
                denials[421] = _OTHER_HOST
            for status, text in denials.items():
                operation["responses"].setdefault(str(status), refusal(status, text, error_schema(path)))
    return document
