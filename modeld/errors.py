# SPDX-License-Identifier: GPL-3.0-only
"""All errors a caller can meet, each with its HTTP status.

A message is a sentence a person can act on: what happened, to what, with which numbers, what to do.
Errors cross thread and process boundaries as `Problem` values and become exceptions again at the edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec

JsonScalar = str | int | float | bool | None
"""A scalar that JSON can carry; `details` hold only these, by name."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error as a value. `kind` is the `type` on the wire and the key of `ERRORS`."""

    kind: str
    message: str
    details: Mapping[str, JsonScalar] = {}
    retry_after_s: float | None = None

    def as_error(self) -> ModeldError:
        """Return the exception this value stands for (`InternalError` for an unknown kind)."""
        error_class = ERRORS.get(self.kind, InternalError)
        return error_class(self.message, details=self.details, retry_after_s=self.retry_after_s)

    @property
    def status(self) -> int:
        """The HTTP status of this problem."""
        return ERRORS.get(self.kind, InternalError).status

    @property
    def brief(self) -> str:
        """What logs and events say of it: the message, unless that may have words of a prompt or its like."""
        return ERRORS.get(self.kind, InternalError).brief or self.message


class ModeldError(Exception):
    """Base of all errors a caller can meet. Subclasses differ only in `status` and `kind`."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal_error"
    default_retry_after_s: ClassVar[float | None] = None
    """Seconds for `Retry-After` when the raiser knows no better; None sends no header."""
    brief: ClassVar[str] = ""
    """What logs and events say, where messages may quote what a client sent, or a model's template."""

    def __init__(
        self,
        message: str,
        *,
        details: Mapping[str, JsonScalar] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, JsonScalar] = dict(details or {})
        self.retry_after_s = self.default_retry_after_s if retry_after_s is None else retry_after_s

    def as_problem(self) -> Problem:
        """Return this error as a value that can cross a boundary."""
        return Problem(
            kind=self.kind,
            message=self.message,
            details=self.details,
            retry_after_s=self.retry_after_s,
        )


class InvalidRequest(ModeldError):
    """The request is malformed or asks for something impossible."""

    status = 400
    kind = "invalid_request"
    brief = "the request asks for what cannot be done; its answer says why"


class PromptTooLong(InvalidRequest):
    """The prompt has more tokens than the model's context."""

    kind = "prompt_too_long"
    brief = ""


class Unauthorized(ModeldError):
    """There is no key in the request, or none that is known."""

    status = 401
    kind = "unauthorized"


class Forbidden(ModeldError):
    """The key may not do this."""

    status = 403
    kind = "forbidden"


class OriginNotAllowed(Forbidden):
    """The request comes from a web page of another origin, and CORS does not let that one in."""

    kind = "origin_not_allowed"


class HostNotAllowed(ModeldError):
    """No keys are in force, and the Host header has a name that may be that of a rebound web page."""

    status = 421
    kind = "host_not_allowed"


class NotFound(ModeldError):
    """No such path."""

    status = 404
    kind = "not_found"


class ModelNotFound(NotFound):
    """No model of that id or alias."""

    kind = "model_not_found"


class MethodNotAllowed(ModeldError):
    """The path exists, the method does not; the edge adds `Allow`."""

    status = 405
    kind = "method_not_allowed"


class OperationNotFound(NotFound):
    """No operation of that id is known, or not any more."""

    kind = "operation_not_found"


class Conflict(ModeldError):
    """What is asked for contradicts what an operator wanted before."""

    status = 409
    kind = "conflict"


class BodyTooSlow(ModeldError):
    """The body did not arrive in time."""

    status = 408
    kind = "body_too_slow"


class ReaderTooSlow(ModeldError):
    """The client read its stream so slowly that the backlog passed its limit."""

    status = 408
    kind = "reader_too_slow"


class BodyTooLarge(ModeldError):
    """The body has more bytes than `max_body_bytes`."""

    status = 413
    kind = "body_too_large"


class UnsupportedMediaType(ModeldError):
    """The body is not declared as application/json."""

    status = 415
    kind = "unsupported_media_type"


class InvalidGrammar(ModeldError):
    """A grammar or JSON schema that cannot be compiled."""

    status = 422
    kind = "invalid_grammar"
    brief = "the grammar, schema or functions of the request cannot be used; its answer says why"


class QueueFull(ModeldError):
    """The model's queue has no place left."""

    status = 429
    kind = "queue_full"
    default_retry_after_s = 1.0


class WaitedTooLong(ModeldError):
    """The request waited longer than `max_wait` for others."""

    status = 429
    kind = "waited_too_long"
    default_retry_after_s = 1.0


class RateLimited(ModeldError):
    """The key has used up what it may have within a minute, or at once."""

    status = 429
    kind = "rate_limited"
    default_retry_after_s = 1.0


class QuotaExceeded(ModeldError):
    """The key has used up what it may have within a day."""

    status = 429
    kind = "quota_exceeded"
    default_retry_after_s = 60.0


class TooManyAttempts(ModeldError):
    """More keys that were not seen before wait to be checked than may."""

    status = 429
    kind = "too_many_attempts"
    default_retry_after_s = 1.0


class InternalError(ModeldError):
    """A defect of modeld or of the engine."""


class EngineFailed(InternalError):
    """The engine died or broke while it served this request."""

    kind = "engine_failed"


class Draining(ModeldError):
    """The daemon is shutting down."""

    status = 503
    kind = "draining"
    default_retry_after_s = 5.0


CUT_SHORT = (
    "this answer was cut before its end: modeld is shutting down, or the model had to go "
    "(unloaded by force, or to make room); ask again"
)
"""Of an answer that had begun and ends with `FinishReason.SHUTDOWN`, which stands for all of these."""


class ModelFailed(ModeldError):
    """The model cannot be loaded; it is tried again after a backoff."""

    status = 503
    kind = "model_failed"
    default_retry_after_s = 5.0


class OutOfMemory(ModelFailed):
    """Memory ran out while the model was loaded; with a raised estimate it is tried once more."""

    kind = "out_of_memory"


class MemoryTaken(ModeldError):
    """The model fits the budget, but other processes hold so much memory that it does not fit now."""

    status = 503
    kind = "memory_taken"
    default_retry_after_s = 10.0


class FileChanged(ModelFailed):
    """The file is not the one that was looked at; it is looked at again, and once more tried."""

    kind = "file_changed"


class Evicted(ModeldError):
    """The model had to make room for another one before the request had its first token."""

    status = 503
    kind = "evicted"
    default_retry_after_s = 1.0


class Unloaded(ModeldError):
    """An operator had the model unloaded by force before the request had its first token."""

    status = 503
    kind = "unloaded"
    default_retry_after_s = 1.0


class DeadlineUnreachable(ModeldError):
    """The request's time will be over before a slot can be free."""

    status = 503
    kind = "deadline_unreachable"
    default_retry_after_s = 1.0


class DeadlineExceeded(ModeldError):
    """The request's time was over before its first token."""

    status = 504
    kind = "deadline_exceeded"


class DoesNotFit(ModeldError):
    """The model can never fit in the memory budget."""

    status = 507
    kind = "does_not_fit"


ERRORS: Mapping[str, type[ModeldError]] = {
    error.kind: error
    for error in (
        InvalidRequest,
        PromptTooLong,
        Unauthorized,
        Forbidden,
        OriginNotAllowed,
        HostNotAllowed,
        NotFound,
        ModelNotFound,
        OperationNotFound,
        MethodNotAllowed,
        Conflict,
        BodyTooSlow,
        ReaderTooSlow,
        BodyTooLarge,
        UnsupportedMediaType,
        InvalidGrammar,
        QueueFull,
        WaitedTooLong,
        RateLimited,
        QuotaExceeded,
        TooManyAttempts,
        InternalError,
        EngineFailed,
        Draining,
        ModelFailed,
        OutOfMemory,
        MemoryTaken,
        FileChanged,
        Evicted,
        Unloaded,
        DeadlineUnreachable,
        DeadlineExceeded,
        DoesNotFit,
    )
}
"""The one table: `kind` to class, and so to HTTP status and default `Retry-After`."""
