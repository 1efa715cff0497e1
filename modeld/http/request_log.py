# SPDX-License-Identifier: GPL-3.0-only
"""Log one inference, at the level that its client asked for."""

from __future__ import annotations

from logging import DEBUG

from structlog.typing import FilteringBoundLogger

from modeld.domain.request_events import Failed, Last
from modeld.errors import InternalError, InvalidRequest
from modeld.http.context import HttpRequest
from modeld.telemetry.log import request_level, request_logger


def wanted_level(request: HttpRequest) -> str | None:
    """Return the level that a request asks for itself, or None when it leaves that to `log_level`.

    `?log=` goes before `X-Log-Level`, and that before the old `X-Log-Infer: 1`.

    Raises: InvalidRequest for a level that there is not.
    """
    for name, value in (
        ("?log", request.args.get("log") if request.query_string else None),
        ("X-Log-Level", request.sent(b"x-log-level", None)),
    ):
        if value is None:
            continue
        level = request_level(value)
        if level is None:
            raise InvalidRequest(
                f'{name}: there is no level "{value[:40]}"; use off, error, warn, info or debug'
            )
        return level
    return "debug" if request.sent(b"x-log-infer") == "1" else None


class InferenceLog:
    """Tells the log of one inference: its start, its end, and at `debug` each write to the client."""

    def __init__(self, level: str | None, *, request_id: str, model: str) -> None:
        self._log: FilteringBoundLogger = request_logger(level, request_id=request_id, model=model)
        self.verbose = self._log.is_enabled_for(DEBUG)

    def began(self, *, stream: bool) -> None:
        """The request was taken."""
        self._log.info("inference began", stream=stream)

    def sent(self, lines: bytes) -> None:
        """These lines go to the client. Call it only when `verbose`."""
        for line in lines.splitlines():
            self._log.debug("line", line=line.decode())

    def broke(self, error: BaseException) -> None:
        """The answer failed for a reason that lies in modeld."""
        self._log.error("the answer broke", exc_info=error)

    def ended(self, last: Last | None) -> None:
        """The request ended; `last` is None when the client left before."""
        if last is None:
            self._log.info("inference ended", outcome="client_left")
            return
        stats = last.stats
        numbers: dict[str, object] = {
            "prompt_tokens": last.usage.prompt_tokens,
            "completion_tokens": last.usage.completion_tokens,
            "duration_ms": round(stats.duration_s * 1000),
            "queue_ms": round(stats.queue_s * 1000),
            "load_ms": round(stats.load_s * 1000),
            "ttft_ms": None if stats.ttft_s is None else round(stats.ttft_s * 1000),
            "tokens_per_second": round(stats.tokens_per_second, 2),
        }
        if isinstance(last, Failed):
            # Only defects are errors: 503, 504 and 507 are what clients asked for, or backpressure.
            tell = self._log.error if last.problem.status == InternalError.status else self._log.info
            tell("inference ended", outcome=last.problem.kind, error=last.problem.brief, **numbers)
            if last.problem.brief != last.problem.message:
                self._log.debug("it was told why", error=last.problem.message)
        else:
            self._log.info("inference ended", outcome=last.reason.value, **numbers)
