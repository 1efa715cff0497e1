# SPDX-License-Identifier: GPL-3.0-only
"""Admit a request, or refuse it and say why."""

from __future__ import annotations

import math

from modeld.core.eta import retry_after, retry_after_any
from modeld.core.fleet import Fleet
from modeld.core.gates import is_closed
from modeld.core.instant import Instant
from modeld.core.lifecycle import State
from modeld.core.models import ModelSpec
from modeld.core.placement import STUCK_RETRY_S, fits_not_now, never_fits
from modeld.core.restart import is_open
from modeld.errors import DeadlineUnreachable, Draining, ModelFailed, Problem, QueueFull

RETRY_DAMAGED_S = 30.0
"""A damaged file is looked at again within seconds of its repair; clients need not ask sooner."""


def admit(
    fleet: Fleet, spec: ModelSpec, now: Instant, deadline: Instant | None = None, *, aside: bool = False
) -> Problem | None:
    """Return why a request for this model is refused, or None: it may wait.

    (1) to (4): `unavailable`. (5) Its queue is full, or that of all models is. (6) Its deadline passes
    before those in front of it can have been served. One that needs no slot (`aside`) waits with its
    like only, and not for a turn.
    """
    problem = unavailable(fleet, spec, now)
    if problem is not None:
        return problem
    # (5)
    depth = fleet.queue_depth(spec.id)
    view = fleet.instance(spec.id)
    slots = view.slots if view.state.holds_memory else spec.options.slots
    if aside:
        inside, slots = fleet.asides(spec.id), 0
    else:
        inside = fleet.waiting_for_slot(spec.id) + view.live_leases
    if inside - slots >= depth:
        return _queue_full(fleet, spec.id, inside if aside else fleet.queue_len(spec.id), now)
    has_place = aside or inside < slots
    at_once = view.state is State.READY and has_place and not is_closed(fleet, view, now)
    if not at_once and fleet.waiting_total >= fleet.limits.max_queue_total:
        return _all_queues_full(fleet)
    if aside:
        return None
    return _unreachable(fleet, spec.id, now, deadline, inside // max(1, slots))  # (6)


def unavailable(fleet: Fleet, spec: ModelSpec, now: Instant) -> Problem | None:
    """Return why this model is loaded for nobody, be it a request or an operator; None if it may be.

    (1) The daemon goes down. (2) The file is damaged. (3) The model can never fit, or not until another
    one that hangs comes back or other processes give memory back. (4) It hangs, or it failed and its
    backoff is not over.
    """
    # (1)
    if fleet.draining:
        return Draining("the daemon is shutting down and takes no new requests; try again soon").as_problem()
    # (2)
    if spec.error is not None:
        return ModelFailed(
            f"model {spec.id} cannot be loaded: {spec.error}", retry_after_s=RETRY_DAMAGED_S
        ).as_problem()
    # (3)
    too_large = never_fits(fleet, spec) or fits_not_now(fleet, spec)
    if too_large is not None:
        return too_large
    # (4)
    stuck = fleet.instance(spec.id).stuck
    if stuck is not None:
        return model_failed(spec.id, stuck, STUCK_RETRY_S)
    failures = fleet.instance(spec.id).failures
    if is_open(failures, now):
        return model_failed(spec.id, failures.problem, failures.retry_at - now)
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
    if deadline is None or (view.service_s is None and view.state is State.READY):
        return None
    loads = 0.0 if view.state is State.READY or fleet.queue_len(model_id) == 0 else view.load_s
    if view.state is State.LOADING:
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


def model_failed(model_id: str, cause: Problem | None, wait_s: float) -> Problem:
    """Return the refusal for a model whose last load or engine failed."""
    why = "it failed" if cause is None else cause.message
    retry = max(1, math.ceil(wait_s))
    return ModelFailed(
        f"model {model_id} is not available: {why}; it is tried again in {retry} s",
        details={} if cause is None else cause.details,
        retry_after_s=retry,
    ).as_problem()
