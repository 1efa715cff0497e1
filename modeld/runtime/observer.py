# SPDX-License-Identifier: GPL-3.0-only
"""Shows what the scheduler does: the log, the metrics, and the last decisions for `/status`."""

from __future__ import annotations

import time
from collections import deque

import structlog

from modeld.core.effects import EndOperation, Tell
from modeld.core.status import Decision
from modeld.runtime.ticket import Ticket
from modeld.telemetry.metrics import Metrics

KEPT_DECISIONS = 50
KEPT_REFUSALS = 10
"""Refusals of one model for one reason are one decision that counts; so many of these are kept."""
_LOUD = {"load_failed", "died", "stuck"}


class Observer:
    """Records what happened. Owns the last decisions and the last error; decides nothing."""

    def __init__(self, metrics: Metrics) -> None:
        self._decisions: deque[Decision] = deque(maxlen=KEPT_DECISIONS)
        self._refusals: dict[tuple[str, str], Decision] = {}
        self.last_error: str | None = None
        self._metrics = metrics
        self._log = structlog.stdlib.get_logger("modeld.scheduler")

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The last decisions, newest last. A flood of refusals does not push the others out."""
        everything = sorted((*self._decisions, *self._refusals.values()), key=lambda it: it.at_unix)
        return tuple(everything[-KEPT_DECISIONS:])

    def decided(self, tell: Tell) -> None:
        """Record a decision with its reason and numbers."""
        if tell.action == "refuse":
            self._refused(tell)
            return
        numbers = {key: round(value, 3) for key, value in tell.numbers.items()}
        self._decisions.append(
            Decision(
                at_unix=time.time(),
                action=tell.action,
                model_id=tell.model_id,
                reason=tell.reason,
                numbers=numbers,
            )
        )
        if tell.action in _LOUD:
            self.last_error = f"{tell.model_id}: {tell.reason}"
        level = "error" if tell.action in _LOUD else "info"
        getattr(self._log, level)(tell.action, model=tell.model_id, reason=tell.reason, **numbers)
        if tell.action == "evict":
            self._metrics.count_eviction(tell.model_id, "room")
        elif tell.action == "unload":
            self._metrics.count_eviction(tell.model_id, tell.kind or "ttl")
        elif tell.action == "load_failed":
            self._metrics.observe_load(tell.model_id, 0.0, ok=False)

    def _refused(self, tell: Tell) -> None:
        """Count a refusal together with those before it for the same reason; the request's log has each."""
        key = (tell.model_id, tell.kind)
        before = self._refusals.pop(key, None)
        times = 1.0 if before is None else before.numbers["times"] + 1
        self._refusals[key] = Decision(
            at_unix=time.time(),
            action=tell.action,
            model_id=tell.model_id,
            reason=tell.reason,
            numbers={"times": times},
        )
        if len(self._refusals) > KEPT_REFUSALS:
            del self._refusals[next(iter(self._refusals))]

    def operated(self, end: EndOperation) -> None:
        """Record an operation that ended."""
        one = end.operation
        self._metrics.count_operation(one.kind, end.state)
        self._log.info(
            "operation", id=one.id, kind=one.kind, model=one.model_id, state=end.state, reason=end.reason
        )

    def loaded(self, model_id: str, seconds: float) -> None:
        """Record a load that succeeded."""
        self._metrics.observe_load(model_id, seconds, ok=True)

    def ended(self, ticket: Ticket) -> None:
        """Record a request that ended, or whose client left."""
        if ticket.order.aside:
            self._metrics.count_aside(ticket.model.id, ticket.outcome)
            return
        stats = ticket.stats()
        if ticket.closed and not ticket.ended:
            self._metrics.count_cancel(ticket.model.id, _phase(ticket))
        self._metrics.observe_request(
            ticket.model.id,
            ttft_s=stats.ttft_s,
            queue_s=stats.queue_s,
            duration_s=stats.duration_s,
            tokens_per_second=stats.tokens_per_second,
            usage=ticket.usage,
            reason=ticket.outcome,
        )


def _phase(ticket: Ticket) -> str:
    if ticket.first_token is not None:
        return "decode"
    if ticket.admitted is not None:
        return "prefill"
    return "loading" if ticket.loading else "queued"
