# SPDX-License-Identifier: GPL-3.0-only
"""Backoff after failures, and the breaker that stops trying for a while."""

from __future__ import annotations

from msgspec.structs import replace

from modeld.core.effects import Tell
from modeld.core.instance_view import Failures
from modeld.core.instant import Instant
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
        breaker=failures.breaker or len(recent) >= BREAKER_FAILURES,
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


def after_load(failures: Failures) -> Failures:
    """Count a load that succeeded: it closes the breaker. A request that is served resets the backoff."""
    return replace(failures, breaker=False) if failures.breaker else failures


def is_open(failures: Failures, now: Instant) -> bool:
    """Whether requests are refused at once.

    They are until the backoff after a failed load is over and, when an engine died again and
    again, until the breaker closes. After a single death they are kept for the restart.
    """
    if now >= failures.retry_at:
        return False
    return failures.while_loading or len(failures.recent) >= BREAKER_FAILURES


def told_of_recovery(model_id: str, failures: Failures) -> list[Tell]:
    """Tell that a model is there again that had failed."""
    told: list[Tell] = []
    if failures.in_a_row:
        cause = "" if failures.problem is None else f"; the last one: {failures.problem.message}"
        reason = f"it is loaded again after {_counted(failures.in_a_row, 'failure')}{cause}"
        numbers = {"failures": failures.in_a_row}
        told.append(Tell(action="restarted", model_id=model_id, reason=reason, numbers=numbers))
    if failures.breaker:
        reason = "a load succeeded, so its requests are taken again"
        told.append(Tell(action="breaker_closed", model_id=model_id, reason=reason))
    return told


def told_of_breaker(model_id: str, before: Failures, failures: Failures, now: Instant) -> list[Tell]:
    """Tell that the breaker opened, if it just did."""
    if before.breaker or not failures.breaker:
        return []
    wait = failures.retry_at - now
    reason = (
        f"{_counted(len(failures.recent), 'failure')} within {BREAKER_WINDOW_S:g} s: "
        f"its requests are refused for {wait:.1f} s, then it is tried again"
    )
    numbers = {"failures": len(failures.recent), "retry_in_s": wait}
    return [Tell(action="breaker_opened", model_id=model_id, reason=reason, numbers=numbers)]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
