# SPDX-License-Identifier: GPL-3.0-only
"""Backoff after failures, and the breaker that stops trying for a while."""

from __future__ import annotations

from msgspec.structs import replace

from modeld.core.fleet import Failures, Instant
from modeld.errors import Problem

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 300.0
BREAKER_FAILURES = 5
BREAKER_WINDOW_S = 60.0


def after_failure(failures: Failures, problem: Problem, now: Instant, *, while_loading: bool) -> Failures:
    """Count one more failure: the next try is due after 0.5 s, doubled each time, up to 5 minutes."""
    in_a_row = failures.in_a_row + 1
    backoff = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(in_a_row - 1, 20))
    recent = (*(at for at in failures.recent if now - at < BREAKER_WINDOW_S), now)
    if len(recent) >= BREAKER_FAILURES:
        backoff = max(backoff, BREAKER_WINDOW_S / 2)
    return Failures(
        recent=recent[-BREAKER_FAILURES:],
        in_a_row=in_a_row,
        retry_at=now + backoff,
        while_loading=while_loading,
        problem=problem,
    )


def crashed(failures: Failures, problem: Problem, now: Instant, *, loading: bool) -> Failures:
    """Count a death. The first one in a row is tried again for those who wait, wherever it happened.

    One that comes again while the model is loaded is the model's own: a file that crashes llama.cpp.
    """
    again = failures.in_a_row > 0
    return after_failure(failures, problem, now, while_loading=loading and again)


def after_service(failures: Failures) -> Failures:
    """Count a request that was served: the next backoff is the first again, the breaker forgets nothing."""
    if not failures.in_a_row:
        return failures
    return replace(failures, in_a_row=0, while_loading=False)


def is_open(failures: Failures, now: Instant) -> bool:
    """Whether requests are refused at once.

    They are until the backoff after a failed load is over and, when an engine died again and
    again, until the breaker closes. After a single death they are kept for the restart.
    """
    if now >= failures.retry_at:
        return False
    return failures.while_loading or len(failures.recent) >= BREAKER_FAILURES
