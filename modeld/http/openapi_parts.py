# SPDX-License-Identifier: GPL-3.0-only
"""What all rooms of the OpenAPI document are written with. Pure."""

from __future__ import annotations

from typing import Any

from modeld.errors import ERRORS

Json = dict[str, Any]
"""A JSON object."""
SCHEMAS = "#/components/schemas/"

_ERROR: Json = {
    "error": "no model is called llama; see GET /models",
    "code": 404,
    "type": "model_not_found",
}


def ref(name: str) -> Json:
    """Return the reference to a schema."""
    return {"$ref": SCHEMAS + name}


def refusal(status: int, text: str) -> Json:
    """Return the answer of an error, with the kinds of it there are."""
    kinds = sorted(kind for kind, error in ERRORS.items() if error.status == status)
    answer: Json = {
        "description": f"{text}. `type`: {', '.join(kinds)}",
        "content": {"application/json": {"schema": ref("ErrorBody")}},
    }
    if status == 404:
        answer["content"]["application/json"]["example"] = _ERROR
    if any(ERRORS[kind].default_retry_after_s is not None for kind in kinds):
        answer["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return answer
