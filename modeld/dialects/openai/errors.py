# SPDX-License-Identifier: GPL-3.0-only
"""Errors in OpenAI's envelope: of a refusal, and in the middle of a stream. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import UNSET

from modeld.core.events import Event, Failed, Finished, FinishReason
from modeld.dialects.framing import json_bytes
from modeld.dialects.openai.wire import ErrorDetail, OpenAIError
from modeld.errors import CUT_SHORT, Draining, Evicted, ModeldError, Problem

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_CODES: Mapping[str, str] = {"prompt_too_long": "context_length_exceeded"}
"""Kinds for which clients look under OpenAI's own code."""
_KEY = re.compile(r"`([A-Za-z_][\w.\[\]]*)`|unknown key \"([^\"]{1,80})\"")


def error_detail(problem: Problem) -> ErrorDetail:
    """Return an error as OpenAI writes it. `param` is the key that its sentence names first."""
    status = problem.status
    found = _KEY.search(problem.message) if status in (400, 422) else None
    return ErrorDetail(
        message=problem.message,
        type=_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        param=(found[1] or found[2]) if found else "model" if problem.kind == "model_not_found" else None,
        code=_CODES.get(problem.kind, problem.kind),
        details=dict(problem.details) or UNSET,
    )


def error_answer(problem: Problem, _request_id: str) -> tuple[int, bytes]:
    """Return the status of a refusal and its body; the id is in `x-request-id`, where OpenAI has it."""
    return problem.status, error_bytes(problem)


def error_bytes(problem: Problem) -> bytes:
    """Return the JSON of an error."""
    return json_bytes(OpenAIError(error_detail(problem)))


def as_seen(event: Event) -> Event:
    """Return an event as OpenAI's clients can understand it.

    They know no reason for an answer that the server cut; as an error they try again.
    """
    match event:
        case Finished(reason=FinishReason.SHUTDOWN):
            error: ModeldError = Draining(CUT_SHORT)
        case Finished(reason=FinishReason.CANCELLED):
            error = Evicted("this answer was cut, as its model was unloaded; ask again")
        case _:
            return event
    return Failed(problem=error.as_problem(), usage=event.usage, stats=event.stats)
