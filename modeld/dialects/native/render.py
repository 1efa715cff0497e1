# SPDX-License-Identifier: GPL-3.0-only
"""Render a native request's events as lines, and errors as bodies. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec import UNSET, UnsetType

from modeld.dialects.common.streaming import BLANK_LINE, json_bytes, json_string, line, rounded, text_of
from modeld.dialects.native.wire import (
    CandidateBody,
    ErrorBody,
    FinalLine,
    LoadingLine,
    LogprobBody,
    QueuedLine,
    StatsBody,
    TokenLine,
    UsageBody,
)
from modeld.domain.request_events import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Last,
    Loading,
    Logprobs,
    Queued,
    Stats,
    TokenLogprob,
    Usage,
)
from modeld.errors import JsonScalar, Problem

LOADING_STEPS = 20
"""A load is told in so many steps, each once, whatever the size of the model."""
_ROUNDING = 1e-9
"""0.15 is three steps, though 0.15 * 20 in floating point may be a little less."""


class InferRenderer:
    """Writes one request's answer, after the text `echo`. Feed it every event once, in order.

    Attributes:
      last: the event that ended the request, once it came.
    """

    keepalive = BLANK_LINE

    def __init__(self, *, model: str, request_id: str, events: bool = False, echo: str = "") -> None:
        self.last: Last | None = None
        self._model = model
        self._request_id = request_id
        self._tell_waiting = events
        self._echo = echo
        self._loading_step = -1
        self._texts: list[str] = []
        self._logprobs: list[LogprobBody] = []

    def lines(self, events: Sequence[Event]) -> bytes:
        """Return the lines of these events, ready for one write; may be empty."""
        out: list[bytes] = []
        for event in events:
            if self._echo and isinstance(event, Delta | Finished):
                out.append(line(TokenLine(token=self._take_echo())))
            match event:
                case Delta(text=text, logprobs=()):
                    if text:
                        out.append(b'{"token":%b,"done":false}\n' % json_string(text))
                        self._texts.append(text)
                case Delta(text=text, logprobs=logprobs):
                    bodies = [_logprob(entry) for entry in logprobs]
                    self._texts.append(text)
                    self._logprobs += bodies
                    out.append(line(TokenLine(token=text, logprobs=bodies)))
                case Finished() | Failed():
                    self.last = event
                    out.append(line(self._answer(event)))
                case Queued(position=position, eta_s=eta_s) if self._tell_waiting:
                    eta_ms = None if eta_s is None else round(eta_s * 1000)
                    out.append(line(QueuedLine(position=position, eta_ms=eta_ms)))
                case Loading(progress=progress) if self._tell_waiting:
                    step = math.floor(progress * LOADING_STEPS + _ROUNDING)
                    if step != self._loading_step:
                        self._loading_step = step
                        out.append(line(LoadingLine(progress=round(progress, 3))))
                case _:
                    pass
        return b"".join(out)

    def take(self, events: Iterable[Event]) -> bytes | None:
        """Gather without lines: return the whole answer when its last event is among these, else None."""
        for event in events:
            if self._echo and isinstance(event, Delta | Finished):
                self._take_echo()
            match event:
                case Delta(text=text, logprobs=logprobs):
                    self._texts.append(text)
                    self._logprobs += [_logprob(entry) for entry in logprobs]
                case Finished() | Failed():
                    self.last = event
                    return line(self._answer(event))
                case _:
                    pass
        return None

    def failure(self, problem: Problem) -> bytes:
        """Return the last line for a request that broke outside of the engine."""
        self.last = Failed(problem=problem)
        return line(self._answer(self.last))

    def _take_echo(self) -> str:
        """Let the answer begin with the prompt: when it begins, and once."""
        text, self._echo = self._echo, ""
        self._texts.append(text)
        return text

    def _answer(self, last: Last) -> FinalLine:
        problem = last.problem if isinstance(last, Failed) else None
        return FinalLine(
            error=UNSET if problem is None else problem.message,
            code=UNSET if problem is None else problem.status,
            type=UNSET if problem is None else problem.kind,
            details=UNSET if problem is None else _details(problem),
            content="".join(self._texts),
            logprobs=self._logprobs or UNSET,
            finish_reason=last.reason if isinstance(last, Finished) else FinishReason.ERROR,
            usage=_usage(last.usage),
            stats=stats_body(last.stats),
            model=self._model,
            id=self._request_id,
        )


def error_body(problem: Problem, *, code: int | None = None) -> bytes:
    """Return the JSON of a refusal; `code` when its status is not that of its kind."""
    return json_bytes(
        ErrorBody(
            error=problem.message,
            code=problem.status if code is None else code,
            type=problem.kind,
            details=_details(problem),
        )
    )


def _details(problem: Problem) -> dict[str, JsonScalar] | UnsetType:
    return dict(problem.details) or UNSET


def _usage(usage: Usage) -> UsageBody:
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        drafted_tokens=usage.drafted_tokens or UNSET,
        accepted_tokens=usage.accepted_tokens if usage.drafted_tokens else UNSET,
    )


def stats_body(stats: Stats) -> StatsBody:
    """Return durations as they are written."""
    return StatsBody(
        duration_ms=round(stats.duration_s * 1000),
        queue_ms=round(stats.queue_s * 1000),
        load_ms=round(stats.load_s * 1000),
        ttft_ms=None if stats.ttft_s is None else round(stats.ttft_s * 1000),
        tokens_per_second=round(stats.tokens_per_second, 2),
    )


def _logprob(entry: Logprobs) -> LogprobBody:
    chosen = _candidate(entry.chosen)
    return LogprobBody(
        token=chosen.token,
        id=chosen.id,
        logprob=chosen.logprob,
        bytes=chosen.bytes,
        top=[_candidate(token) for token in entry.top],
    )


def _candidate(token: TokenLogprob) -> CandidateBody:
    return CandidateBody(
        token=text_of(token),
        id=token.token_id,
        logprob=rounded(token.logprob),
        bytes=list(token.text),
    )
