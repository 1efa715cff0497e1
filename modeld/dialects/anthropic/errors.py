# SPDX-License-Identifier: GPL-3.0-only
"""Errors in Anthropic's envelope, with its types and statuses. Pure.

Source: the page "Errors" of the Messages API.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from modeld.dialects.framing import json_bytes
from modeld.errors import (
    DoesNotFit,
    InvalidGrammar,
    ModelNotFound,
    Problem,
    QueueFull,
    WaitedTooLong,
)

OVERLOADED = 529
"""Anthropic's status for a server that has too much to do; clients try again, as after a 503."""
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
_STATUSES: Mapping[str, int] = {
    InvalidGrammar.kind: 400,
    DoesNotFit.kind: 400,
    QueueFull.kind: OVERLOADED,
    WaitedTooLong.kind: OVERLOADED,
}
"""Where another status than modeld's own means the same to clients of Anthropic: 429 is about their own
limits, and whatever is 500 and more they try again, which is of no use where a model can never fit."""


class AnthropicErrorDetail(msgspec.Struct, frozen=True):
    """What kind of error, in Anthropic's words, and a sentence."""

    type: str
    message: str


class AnthropicError(msgspec.Struct, frozen=True, kw_only=True):
    """Every refusal, and the last event of a stream that broke."""

    type: str = "error"
    error: AnthropicErrorDetail
    request_id: str


def error_of(problem: Problem, request_id: str) -> tuple[int, AnthropicError]:
    """Return the status of a problem, and its envelope."""
    status = _STATUSES.get(problem.kind, OVERLOADED if problem.status == 503 else problem.status)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    message = problem.message
    if problem.kind == ModelNotFound.kind:
        message = message.replace("GET /models", "GET /v1/models")
    return status, AnthropicError(error=AnthropicErrorDetail(kind, message), request_id=request_id)


def error_answer(problem: Problem, request_id: str) -> tuple[int, bytes]:
    """Return status and body of a refusal."""
    status, error = error_of(problem, request_id)
    return status, json_bytes(error)
