# SPDX-License-Identifier: GPL-3.0-only
"""Admit a request, or refuse it and say why."""

from __future__ import annotations

import math

from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import ModelSpec
from modeld.domain.request import AS_MANY_AS_FIT, DetokenizeRequest, EmbedRequest, GenerateRequest, Request
from modeld.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    Draining,
    ModelFailed,
    Problem,
    QueueFull,
    WaitedTooLong,
)
from modeld.scheduler.capacity import STUCK_RETRY_S, cannot_fit_yet, never_fits
from modeld.scheduler.draining import gate_is_closed, must_leave
from modeld.scheduler.effects import CutReason, CutRequest, Effect, Outcome, RecordDecision, Refuse
from modeld.scheduler.eta import retry_after, retry_after_any
from modeld.scheduler.queue_order import remove_ended_request
from modeld.scheduler.state import Failures, Fleet, Instant, PendingRequest

# ----------------------------------------------------------------------
# Backoff after failures, and the breaker that stops trying for a while.

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


def recovery_decision(model_id: str, failures: Failures) -> list[RecordDecision]:
    """Tell that a model is there again that had failed."""
    told: list[RecordDecision] = []
    if failures.in_a_row:
        cause = "" if failures.problem is None else f"; the last one: {failures.problem.message}"
        reason = f"it is loaded again after {_counted(failures.in_a_row, 'failure')}{cause}"
        numbers = {"failures": failures.in_a_row}
        told.append(RecordDecision(action="restarted", model_id=model_id, reason=reason, numbers=numbers))
    if failures.breaker:
        reason = "a load succeeded, so its requests are taken again"
        told.append(RecordDecision(action="breaker_closed", model_id=model_id, reason=reason))
    return told


def breaker_decision(
    model_id: str, before: Failures, failures: Failures, now: Instant
) -> list[RecordDecision]:
    """Tell that the breaker opened, if it just did."""
    if before.breaker or not failures.breaker:
        return []
    wait = failures.retry_at - now
    reason = (
        f"{_counted(len(failures.recent), 'failure')} within {BREAKER_WINDOW_S:g} s: "
        f"its requests are refused for {wait:.1f} s, then it is tried again"
    )
    numbers = {"failures": len(failures.recent), "retry_in_s": wait}
    return [RecordDecision(action="breaker_opened", model_id=model_id, reason=reason, numbers=numbers)]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


# ----------------------------------------------------------------------

RETRY_DAMAGED_S = 30.0
"""A damaged file is looked at again within seconds of its repair; clients need not ask sooner."""


def admit(
    fleet: Fleet,
    spec: ModelSpec,
    now: Instant,
    deadline: Instant | None = None,
    *,
    needs_no_slot: bool = False,
) -> Problem | None:
    """Return why a request for this model is refused, or None: it may wait.

    It is refused when the model is `unavailable`, when its queue or that of all models is full, or when its
    deadline passes before those in front of it can have been served. One that needs no slot (`needs_no_slot`)
    waits with its like only, and not for a turn.
    """
    problem = unavailable(fleet, spec, now)
    if problem is not None:
        return problem
    depth = fleet.queue_depth(spec.id)
    view = fleet.instance(spec.id)
    slots = view.slots if view.state.holds_memory else spec.options.slots
    if needs_no_slot:
        inside, slots = fleet.needing_no_slot(spec.id), 0
    else:
        inside = fleet.waiting_for_slot(spec.id) + view.live_leases
    if inside - slots >= depth:
        return _queue_full(fleet, spec.id, inside if needs_no_slot else fleet.queue_len(spec.id), now)
    has_place = needs_no_slot or inside < slots
    at_once = view.state is InstanceState.READY and has_place and not gate_is_closed(fleet, view, now)
    if not at_once and fleet.waiting_total >= fleet.limits.max_queue_total:
        return _all_queues_full(fleet)
    if needs_no_slot:
        return None
    return _unreachable(fleet, spec.id, now, deadline, inside // max(1, slots))


def unavailable(fleet: Fleet, spec: ModelSpec, now: Instant) -> Problem | None:
    """Return why this model is loaded for nobody, be it a request or an operator; None if it may be.

    The daemon shuts down; the file is damaged; the model can never fit, or not until another one that hangs
    comes back or other processes give memory back; it hangs; or it failed and its backoff is not over.
    """
    if fleet.draining:
        return Draining("the daemon is shutting down and takes no new requests; try again soon").as_problem()
    if spec.error is not None:
        return ModelFailed(
            f"model {spec.id} cannot be loaded: {spec.error}", retry_after_s=RETRY_DAMAGED_S
        ).as_problem()
    too_large = never_fits(fleet, spec) or cannot_fit_yet(fleet, spec)
    if too_large is not None:
        return too_large
    stuck = fleet.instance(spec.id).stuck
    if stuck is not None:
        return model_failed_problem(spec.id, stuck, STUCK_RETRY_S)
    failures = fleet.instance(spec.id).failures
    if is_open(failures, now):
        return model_failed_problem(spec.id, failures.problem, failures.retry_at - now)
    return None


def _queue_full(fleet: Fleet, model_id: str, waiting: int, now: Instant) -> Problem:
    depth = fleet.queue_depth(model_id)
    retry = retry_after(fleet, model_id, now)
    return QueueFull(
        f"the queue of model {model_id} is full: {waiting} requests wait and max_queue_depth is {depth}; "
        f"try again in {retry} s",
        details={"queue_len": waiting, "max_queue_depth": depth},
        retry_after_s=retry,
    ).as_problem()


def _all_queues_full(fleet: Fleet) -> Problem:
    waiting, most = fleet.waiting_total, fleet.limits.max_queue_total
    retry = retry_after_any(fleet)
    return QueueFull(
        f"{waiting} requests wait for all models together, and max_queue_total is {most}; "
        f"try again in {retry} s",
        details={"queue_total": waiting, "max_queue_total": most},
        retry_after_s=retry,
    ).as_problem()


def _unreachable(
    fleet: Fleet, model_id: str, now: Instant, deadline: Instant | None, rounds: int
) -> Problem | None:
    """Refuse what would wait in vain: `rounds` of requests come first, the first of which is under way.

    Only what is certain by measurement counts: the round under way is taken as over; a load counts with
    what the last one took, but only for those behind the first, which starts it (else a model whose one
    load was slow would never be loaded again).
    """
    view = fleet.instance(model_id)
    if deadline is None or (view.service_s is None and view.state is InstanceState.READY):
        return None
    loads = 0.0 if view.state is InstanceState.READY or fleet.queue_len(model_id) == 0 else view.load_s
    if view.state is InstanceState.LOADING:
        loads = max(0.0, loads - (now - view.load_started))
    wait = loads + max(0, rounds - 1) * (view.service_s or 0.0)
    if now + wait <= deadline:
        return None
    retry = max(1, math.ceil(wait))
    return DeadlineUnreachable(
        f"this request has {deadline - now:.1f} s, and about {wait:.1f} s of loading and of others' requests "
        f"for model {model_id} come first; try again in {retry} s, or give it more time",
        details={"eta_ms": round(wait * 1000), "queue_len": fleet.queue_len(model_id)},
        retry_after_s=retry,
    ).as_problem()


def model_failed_problem(model_id: str, cause: Problem | None, wait_s: float) -> Problem:
    """Return the refusal for a model whose last load or engine failed."""
    why = "it failed" if cause is None else cause.message
    retry = max(1, math.ceil(wait_s))
    return ModelFailed(
        f"model {model_id} is not available: {why}; it is tried again in {retry} s",
        details={} if cause is None else cause.details,
        retry_after_s=retry,
    ).as_problem()


# ----------------------------------------------------------------------
# Requests whose time is over: rule 2 of `scheduler.step`.


def end_overdue_requests(fleet: Fleet, now: Instant) -> Outcome:
    """Rule 2: end the requests whose own deadline passed, or that waited for others for too long."""
    effects: list[Effect] = []
    staying: list[PendingRequest] = []
    for waiter in fleet.waiting:
        loading = fleet.instance(waiter.model_id).state is InstanceState.LOADING
        if waiter.deadline is not None and now >= waiter.deadline:
            effects.append(Refuse(waiter.ticket, _deadline_passed(waiter, now)))
        elif not loading and now >= waiter.waiting_since + fleet.limits.max_wait_s:
            effects.append(Refuse(waiter.ticket, _waited_too_long(fleet, waiter.model_id, now)))
        else:
            staying.append(waiter)
    if len(staying) < len(fleet.waiting):
        fleet = replace(fleet, waiting=tuple(staying))
    for view in fleet.instances.values():
        for lease in view.leases:
            if lease.closed:
                continue
            if lease.request.deadline is not None and now >= lease.request.deadline:
                problem = _deadline_passed(lease.request, now)
                effects.append(CutRequest(lease.request.ticket, CutReason.TIMEOUT, problem))
            elif lease.waits_for_slot and now >= lease.request.waiting_since + fleet.limits.max_wait_s:
                problem = _waited_too_long(fleet, view.model_id, now)
                effects.append(CutRequest(lease.request.ticket, CutReason.WAITED, problem))
            else:
                continue
            fleet = remove_ended_request(fleet, lease.request.ticket)
    return fleet, effects


def _deadline_passed(request: PendingRequest, now: Instant) -> Problem:
    return DeadlineExceeded(
        f"no token within {now - request.arrived:.1f} s, the time this request was given; "
        "give it a longer timeout, or try when the queue is shorter"
    ).as_problem()


def _waited_too_long(fleet: Fleet, model_id: str, now: Instant) -> Problem:
    view = fleet.instance(model_id)
    retry = retry_after(fleet, model_id, now)
    if view.state is InstanceState.DRAINING or must_leave(fleet, view, now):
        why = f"model {model_id} is being unloaded"
    elif gate_is_closed(fleet, view, now):
        others = ", ".join(
            reservation.model_id for reservation in fleet.reservations if model_id in reservation.victims
        )
        why = f"model {model_id} had its turn and makes room for {others}"
    elif view.state.holds_memory:
        why = f"all {view.slots} slots of model {model_id} are taken"
    else:
        holders = ", ".join(sorted(v.model_id for v in fleet.instances.values() if v.reserved)) or "nobody"
        why = f"there is no room to load model {model_id}, the memory is held by {holders}"
    return WaitedTooLong(
        f"waited {fleet.limits.max_wait_s:g} s (max_wait): {why}; try again in {retry} s",
        details={"max_wait_s": fleet.limits.max_wait_s, "queue_len": fleet.queue_len(model_id)},
        retry_after_s=retry,
    ).as_problem()


# ----------------------------------------------------------------------
# What a request will cost, in tokens, as far as one can tell before its prompt was read. Pure.

CHARACTERS_PER_TOKEN = 4
"""Of usual English text in usual vocabularies."""


def token_estimate(request: Request, context: int, share: int = 0) -> int:
    """Return the tokens of prompt and answer; at most the model's context (0: unknown), at least 1.

    An answer counts with all it may have: how long it gets, nobody knows. One without a bound fills
    `share`, the KV cells of a slot.
    """
    match request:
        case GenerateRequest():
            texts = (request.prompt or "", *(message.content for message in request.messages))
            prompt = sum(map(len, texts)) // CHARACTERS_PER_TOKEN + len(request.prompt_tokens)
            bound = request.max_tokens
            tokens = max(prompt, share) if bound == AS_MANY_AS_FIT else prompt + bound
            tokens = min(tokens, context) if context else tokens
        case EmbedRequest():
            tokens = sum(
                len(text) // CHARACTERS_PER_TOKEN if isinstance(text, str) else len(text)
                for text in request.inputs
            )
        case DetokenizeRequest():
            tokens = len(request.tokens)
        case _:
            tokens = 0
    return max(1, tokens)
