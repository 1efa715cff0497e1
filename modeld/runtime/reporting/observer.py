# SPDX-License-Identifier: GPL-3.0-only
"""Record what the scheduler does: log, metrics, events, and recent decisions for `/status`."""

from __future__ import annotations

import math
import time
from collections import deque

import structlog

from modeld.domain.daemon_events import EventKind
from modeld.domain.model import MIB
from modeld.domain.operation import OperationKind
from modeld.domain.request_events import Stats
from modeld.domain.status import Decision
from modeld.runtime.reporting.event_log import EventLog
from modeld.runtime.ticket import Ticket
from modeld.scheduler import inputs
from modeld.scheduler.effects import EndOperation, RecordDecision, RefuseOperation, kind_of
from modeld.scheduler.state import Instant
from modeld.telemetry.metrics import Metrics

KEPT_DECISIONS = 50
KEPT_REFUSALS = 10
"""Refusals of one model for one reason are one decision that counts; so many of these are kept."""
PROGRESS_STEP = 0.05
_LOUD = {"load_failed", "died", "stuck"}


class SchedulerObserver:
    """Records what happened. Owns the last decisions and the last error; decides nothing.

    Attributes:
      events: everything, as one stream of events.
    """

    def __init__(self, metrics: Metrics, events: EventLog | None = None) -> None:
        self.events = EventLog() if events is None else events
        self._decisions: deque[Decision] = deque(maxlen=KEPT_DECISIONS)
        self._progress: dict[str, float] = {}
        self._refusals: dict[tuple[str, str], Decision] = {}
        self.last_error: str | None = None
        self._metrics = metrics
        self._log = structlog.stdlib.get_logger("modeld.scheduler")

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The last decisions, newest last. A flood of refusals does not push the others out."""
        everything = sorted((*self._decisions, *self._refusals.values()), key=lambda it: it.at_unix)
        return tuple(everything[-KEPT_DECISIONS:])

    def decided(self, tell: RecordDecision) -> None:
        """Record a decision with its reason and numbers."""
        if tell.action == "refuse":
            self._refused(tell)  # Its event is told with the end of the request.
            return
        numbers = {key: round(value, 3) for key, value in tell.numbers.items()}
        kind, cause = kind_of(tell)
        self.events.record(
            kind,
            model=tell.model_id,
            cause=cause,
            reason=tell.reason,
            for_model=tell.for_model,
            key=tell.key,
            numbers=numbers,
        )
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
        match kind:
            case EventKind.EVICTING | EventKind.UNLOADING:
                self._metrics.instances.count_eviction(tell.model_id, cause)
            case EventKind.BREAKER_OPENED:
                self._metrics.instances.count_breaker(tell.model_id)
            case EventKind.FAILED if cause == "load":
                self._metrics.instances.observe_load(tell.model_id, 0.0, ok=False)
            case _:
                pass

    def _refused(self, tell: RecordDecision) -> None:
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
        self._metrics.instances.count_operation(one.kind, end.state)
        self._log.info(
            "operation",
            id=one.id,
            kind=one.kind,
            model=one.model_id,
            state=end.state,
            reason=end.reason,
            **({"key": one.key} if one.key else {}),
        )
        self.events.record(
            EventKind.OPERATION_ENDED,
            model=one.model_id,
            operation=one.id,
            key=one.key,
            cause=end.state.value,
            reason=end.reason if end.problem is None else end.problem.message,
        )

    def loaded(self, model_id: str, seconds: float) -> None:
        """Record a load that succeeded."""
        self._metrics.instances.observe_load(model_id, seconds, ok=True)

    def forget(self, model_id: str) -> None:
        """Forget the series of a model that is gone, or they would be as many as there ever were."""
        self._progress.pop(model_id, None)
        self._metrics.forget(model_id)

    def progressed(self, model_id: str, fraction: float) -> None:
        """Record how far a load is, in [0, 1]: at its begin, at each 5 % and at its end."""
        told = self._progress.get(model_id, math.inf)
        if told <= fraction < told + PROGRESS_STEP and (fraction < 1 or told == 1):
            return
        self._progress[model_id] = fraction
        self.events.record(EventKind.LOADING, model=model_id, numbers={"progress": round(fraction, 3)})

    def daemon(self, kind: EventKind, reason: str, **numbers: float) -> None:
        """Record a turn in the life of the daemon itself."""
        self.events.record(kind, reason=reason, numbers=numbers)

    def operation_started(self, event: inputs.Asked) -> None:
        """Record what an operator asked for."""
        match event:
            case inputs.LoadRequested():
                kind = OperationKind.LOAD
            case inputs.UnloadRequested():
                kind = OperationKind.UNLOAD
            case inputs.SwitchRequested():
                kind = OperationKind.SWITCH
        self.events.record(
            EventKind.OPERATION_STARTED,
            model=event.model_id,
            operation=event.operation,
            key=event.key,
            cause=kind.value,
        )

    def operation_refused(self, refused: RefuseOperation) -> None:
        """Record that an operation was not begun."""
        self.events.record(
            EventKind.OPERATION_ENDED,
            model=refused.model_id,
            operation=refused.operation,
            key=refused.key,
            cause="refused",
            reason=refused.problem.message,
        )

    def arrived(self, ticket: Ticket) -> None:
        """Record a request that came: with all that a simulation needs to know of it."""
        spec, order = ticket.model, ticket.order
        numbers: dict[str, float] = {
            "need_mb": round(spec.footprint.total / MIB, 3),
            "slots": spec.options.slots,
        }
        if order.timeout_s is not None:
            numbers["deadline_ms"] = round(order.timeout_s * 1000)
        self.events.record(
            EventKind.ARRIVED,
            model=spec.id,
            ticket=ticket.id,
            request=ticket.request_id,
            key=order.tenant.name,
            cause="aside" if order.needs_no_slot else "",
            priority=order.priority,
            numbers=numbers,
        )

    def queued(self, ticket: Ticket, position: int, eta_s: float | None) -> None:
        """Record that a request has to wait, and at which place of its queue."""
        numbers: dict[str, float] = {"position": position}
        if eta_s is not None:
            numbers["eta_ms"] = round(eta_s * 1000)
        self._instance_of(EventKind.QUEUED, ticket, numbers)

    def granted(self, ticket: Ticket, now: Instant) -> None:
        """Record that a request has a place at its model."""
        self._instance_of(EventKind.GRANTED, ticket, {"waited_ms": _ms(now - ticket.created)})

    def started(self, ticket: Ticket) -> None:
        """Record that a request has a slot."""
        stats = ticket.stats()
        numbers = {
            "queue_ms": _ms(stats.queue_s),
            "load_ms": _ms(stats.load_s),
            "prompt_tokens": ticket.prompt_tokens,
            "cached_tokens": ticket.cached_tokens,
        }
        self._instance_of(EventKind.STARTED, ticket, numbers)

    def _instance_of(self, kind: EventKind, ticket: Ticket, numbers: dict[str, float]) -> None:
        self.events.record(
            kind,
            model=ticket.model.id,
            ticket=ticket.id,
            request=ticket.request_id,
            key=ticket.order.tenant.name,
            numbers=numbers,
        )

    def ended(self, ticket: Ticket) -> None:
        """Record a request that ended, or whose client left."""
        stats = ticket.stats()
        self._tell_end(ticket, stats)
        if ticket.order.needs_no_slot:
            self._metrics.requests.count_without_slot(ticket.model.id, ticket.outcome)
            return
        if ticket.closed and not ticket.ended:
            self._metrics.requests.count_cancel(ticket.model.id, _phase(ticket))
        self._metrics.requests.observe(
            ticket.model.id,
            ttft_s=stats.ttft_s,
            queue_s=stats.queue_s,
            duration_s=stats.duration_s,
            tokens_per_second=stats.tokens_per_second,
            usage=ticket.usage,
            reason=ticket.outcome,
        )

    def _tell_end(self, ticket: Ticket, stats: Stats) -> None:
        numbers: dict[str, float] = {"duration_ms": _ms(stats.duration_s), "queue_ms": _ms(stats.queue_s)}
        problem = ticket.problem
        if problem is not None and problem.retry_after_s is not None:
            numbers["retry_after_s"] = round(problem.retry_after_s, 3)
        if problem is not None:
            numbers["status"] = problem.status
        if ticket.slot_s is not None:
            numbers["slot_ms"] = _ms(ticket.slot_s)
            numbers["prompt_tokens"] = ticket.prompt_tokens
            numbers["completion_tokens"] = ticket.completion_tokens
        if stats.ttft_s is not None:
            numbers["ttft_ms"] = _ms(stats.ttft_s)
        left = ticket.closed and not ticket.ended
        self.events.record(
            EventKind.REFUSED if problem is not None and ticket.admitted is None else EventKind.ENDED,
            model=ticket.model.id,
            ticket=ticket.id,
            request=ticket.request_id,
            key=ticket.order.tenant.name,
            cause=ticket.outcome,
            reason=f"its client left ({_phase(ticket)})" if left else problem.brief if problem else "",
            numbers=numbers,
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _phase(ticket: Ticket) -> str:
    if ticket.first_token is not None:
        return "decode"
    if ticket.admitted is not None:
        return "prefill"
    return "loading" if ticket.loading else "queued"
