# SPDX-License-Identifier: GPL-3.0-only
"""Turn exceptions into responses, in the error format of each dialect."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from quart import Response
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from modeld.dialects import anthropic, llamacpp, native, ollama, openai
from modeld.errors import (
    BodyTooLarge,
    BodyTooSlow,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModeldError,
    NotFound,
    Problem,
    Unauthorized,
)
from modeld.http.limits import HttpLimits
from modeld.telemetry.log import get_logger

# ----------------------------------------------------------------------
# Error formats: one for each API.


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """How an API writes errors.

    Attributes:
      body: the type of the JSON, for the OpenAPI document.
      render: takes a problem and the request's id; returns the HTTP status and the JSON.
    """

    body: type[msgspec.Struct]
    render: Callable[[Problem, str], tuple[int, bytes]]


def _render_native(problem: Problem, _: str) -> tuple[int, bytes]:
    return problem.status, native.error_body(problem)


NATIVE = ErrorFormat(native.ErrorBody, _render_native)
OPENAI = ErrorFormat(openai.OpenAIError, openai.error_answer)
ANTHROPIC = ErrorFormat(anthropic.AnthropicError, anthropic.error_answer)
OLLAMA = ErrorFormat(ollama.OllamaError, ollama.error_answer)
LLAMACPP = ErrorFormat(llamacpp.LlamaError, llamacpp.error_answer)

_PREFIXES: Mapping[str, ErrorFormat] = {"/api/": OLLAMA, "/v1/messages/": ANTHROPIC, "/v1/": OPENAI}


def format_of_unknown(path: str) -> ErrorFormat:
    """Return the error format for a path without an endpoint: that of the API whose prefix it has."""
    return next((it for prefix, it in _PREFIXES.items() if path.startswith(prefix)), NATIVE)


# ----------------------------------------------------------------------

log = get_logger("modeld.http")

IN_VAIN = frozenset({504, 507})
"""Statuses for which a second try would have the same answer."""
BACKPRESSURE = frozenset({429, 503, 507})
"""Statuses that say: not now, or not here."""


def error_of(
    exception: BaseException, *, path: str, method: str, request_id: str, limits: HttpLimits
) -> ModeldError:
    """Return the error to show for an exception. What no one foresaw is logged with its traceback."""
    match exception:
        case ModeldError():
            return exception
        case HTTPException(code=404):
            return NotFound(f"there is no {path[:200]} here; see /docs")
        case HTTPException(code=405):
            return MethodNotAllowed(
                f"{path[:200]} does not take {method[:20]}; the Allow header says what it takes"
            )
        case HTTPException(code=408):
            return BodyTooSlow(
                f"the body did not arrive within {limits.body_timeout_s:g} s (body_timeout); send it faster"
            )
        case HTTPException(code=413):
            return body_too_large(limits.max_body_bytes)
        case HTTPException(code=int(code)) if 400 <= code < 500:
            return InvalidRequest(exception.description or exception.name)
        case _:
            log.error("a request broke", request_id=request_id, path=path[:200], exc_info=exception)
            return InternalError(
                f"modeld failed at this request; the log has the cause under the id {request_id}"
            )


def body_too_large(max_bytes: int) -> BodyTooLarge:
    """Return the error for a body over the limit."""
    return BodyTooLarge(
        f"the body has more than {max_bytes} bytes; send less, or raise max_body_bytes",
        details={"max_body_bytes": max_bytes},
    )


def error_response(
    error: ModeldError, errors: ErrorFormat, *, request_id: str, exception: BaseException | None = None
) -> Response:
    """Return the answer to an error in the format of an API, with the headers that belong to it."""
    problem = error.as_problem()
    status, body = errors.render(problem, request_id)
    response = Response(body, status, content_type="application/json")
    response.headers.update(error_headers(problem))
    if isinstance(exception, WerkzeugMethodNotAllowed) and exception.valid_methods is not None:
        response.headers["Allow"] = ", ".join(sorted(exception.valid_methods))
    return response


def error_headers(problem: Problem) -> Mapping[str, str]:
    """Return `Retry-After`, in whole seconds, where the error knows when to try again, and how to log in.

    The clients of OpenAI and Anthropic try any 5xx again; `X-Should-Retry` tells them where that is in vain.
    """
    if problem.kind == Unauthorized.kind:
        return {"WWW-Authenticate": 'Bearer realm="modeld"'}
    if problem.retry_after_s is None:
        return {"X-Should-Retry": "false"} if problem.status in IN_VAIN else {}
    return {"Retry-After": str(max(1, math.ceil(problem.retry_after_s)))}
