# SPDX-License-Identifier: GPL-3.0-only
"""Handle an instance that loaded, failed to load, died, hangs, or stopped."""

from __future__ import annotations

from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState, transition
from modeld.domain.model import MIB
from modeld.errors import EngineFailed, FileChanged, OutOfMemory, Problem
from modeld.memory.calibration import with_new_peak
from modeld.scheduler import inputs
from modeld.scheduler.admission import (
    after_failure,
    after_load,
    breaker_decision,
    crashed,
    is_open,
    model_failed_problem,
    recovery_decision,
)
from modeld.scheduler.capacity import STUCK_RETRY_S
from modeld.scheduler.effects import Effect, Outcome, RecordDecision, Refuse
from modeld.scheduler.keep_alive import OPERATOR, expires_at
from modeld.scheduler.operations import fail_loads
from modeld.scheduler.queue_order import refuse_waiters
from modeld.scheduler.state import Failures, Fleet, InstanceView, Instant, Lease, PendingRequest

NEXT_LOOK_S = 5.0
"""By then the folder was looked at (every 2 s), or it does not answer."""


def on_loaded(fleet: Fleet, model_id: str, slots: int, now: Instant) -> Outcome:
    """Make an instance ready that was loaded; one that was given up meanwhile goes."""
    view = fleet.instance(model_id)
    if view.state is InstanceState.DRAINING:  # It was given up while it loaded.
        return fleet, []
    spec = fleet.catalog.models.get(model_id)
    ttl = None if spec is None else spec.ttl_s
    load_s = now - view.load_started
    failures = view.failures
    stays = {OPERATOR: expires_at(ttl, now)} if view.wanted else {}
    view = replace(
        view,
        state=transition(view.state, InstanceState.READY),
        slots=slots,
        wanted=False,
        last_used=now,
        ready_at=now,
        load_s=load_s,
        keep_until=None if ttl is None else now + ttl,
        stays=stays,
        failures=after_load(failures),
    )
    waiting = tuple(
        _without_load(waiter, view.load_started, now) if waiter.model_id == model_id else waiter
        for waiter in fleet.waiting
    )
    numbers = {"load_s": round(load_s, 3), "slots": slots}
    effects: list[Effect] = [
        RecordDecision(action="ready", model_id=model_id, reason="it was loaded", numbers=numbers),
        *recovery_decision(model_id, failures),
    ]
    return replace(fleet.with_instance(view), waiting=waiting, loads=fleet.loads + 1), effects


def _without_load(waiter: PendingRequest, load_started: Instant, now: Instant) -> PendingRequest:
    """Take the time of the model's own load out of what counts as waiting for others."""
    return replace(waiter, waiting_since=waiter.waiting_since + now - max(load_started, waiter.arrived))


def on_load_failed(fleet: Fleet, model_id: str, problem: Problem, now: Instant) -> Outcome:
    """Refuse who waits for it, and try again after a backoff.

    Nobody is refused where it is tried once more: at once, with more memory, if that ran out; after the next
    look at the folder if its file is another one.
    """
    view = fleet.instance(model_id)
    if problem.kind == OutOfMemory.kind and (again := _replanned(fleet, view, problem, now)) is not None:
        return again
    if problem.kind == FileChanged.kind and not view.failures.in_a_row:
        return _file_rechecked(fleet, view, problem, now)
    before = view.failures
    failures = after_failure(before, problem, now, while_loading=True)
    fleet = fleet.with_instance(_without_memory(view, InstanceState.ERROR, failures))
    refusal = model_failed_problem(model_id, problem, failures.retry_at - now)
    effects: list[Effect] = [
        RecordDecision(
            action="load_failed",
            model_id=model_id,
            reason=problem.message,
            numbers={"failures": failures.in_a_row, "retry_in_s": failures.retry_at - now},
        ),
        *breaker_decision(model_id, before, failures, now),
    ]
    fleet, more = _refuse_all(fleet, model_id, refusal)
    return fleet, effects + more


def _replanned(fleet: Fleet, view: InstanceView, problem: Problem, now: Instant) -> Outcome | None:
    """Plan a load again with a higher estimate, as memory ran out; None: that was done before."""
    spec = fleet.catalog.models.get(view.model_id)
    if spec is None or view.failures.in_a_row or (larger := with_new_peak(spec)) is None:
        return None
    failures = after_failure(view.failures, problem, now, while_loading=False)
    view = _without_memory(view, InstanceState.ERROR, replace(failures, retry_at=now))
    catalog = replace(fleet.catalog, models={**fleet.catalog.models, spec.id: larger})
    before, after = spec.footprint.total / MIB, larger.footprint.total / MIB
    tell = RecordDecision(
        action="replan",
        model_id=spec.id,
        reason=f"memory ran out while it was loaded; its estimate goes from {before:.0f} to {after:.0f} MiB, "
        f"and it is tried once more: {problem.message}",
        numbers={"before_mb": before, "need_mb": after},
    )
    return replace(fleet.with_instance(view), catalog=catalog), [tell]


def _file_rechecked(fleet: Fleet, view: InstanceView, problem: Problem, now: Instant) -> Outcome:
    """Wait for the next look at the folder; `note` has it loaded again as soon as that has found a change."""
    failures = after_failure(view.failures, problem, now, while_loading=False)
    view = _without_memory(view, InstanceState.ERROR, replace(failures, retry_at=now + NEXT_LOOK_S))
    tell = RecordDecision(
        action="replan",
        model_id=view.model_id,
        reason=f"it is tried once more after the next look at the folder: {problem.message}",
    )
    return fleet.with_instance(view), [tell]


def on_died(fleet: Fleet, event: inputs.InstanceDied, now: Instant) -> Outcome:
    """Give the memory back and let those who saw nothing wait again, unless the breaker opened.

    A request that was in a slot begins again once: if two engines died over it, it may be the cause.
    """
    model_id, problem = event.model_id, event.problem
    view = fleet.instance(model_id)
    failures = crashed(view.failures, problem, now, loading=view.state is InstanceState.LOADING)
    spec = fleet.catalog.models.get(model_id)
    before = view.leases
    tripped = breaker_decision(model_id, view.failures, failures, now)
    view = replace(
        _without_memory(view, InstanceState.ERROR, failures),
        restarts=view.restarts + 1,
        wanted=view.wanted or (spec is not None and spec.preload),
    )
    numbers = {"failures": failures.in_a_row, "retry_in_s": failures.retry_at - now}
    effects: list[Effect] = [
        RecordDecision(action="died", model_id=model_id, reason=problem.message, numbers=numbers),
        *tripped,
    ]
    waiting: list[PendingRequest] = []
    for lease in before:
        in_slot = lease.slot_since is not None or lease.request.ticket in event.unstarted
        if lease.closed or (in_slot and lease.request.ticket not in event.unstarted):
            continue
        if in_slot and lease.request.deaths:
            effects.append(Refuse(lease.request.ticket, _cause_of_two(problem)))
        else:
            waiting.append(_requeued(lease, now, deaths=lease.request.deaths + in_slot))
    fleet = replace(fleet.with_instance(view), waiting=(*waiting, *fleet.waiting))
    if not is_open(failures, now):
        return fleet, effects
    fleet, more = _refuse_all(
        fleet, model_id, model_failed_problem(model_id, problem, failures.retry_at - now)
    )
    return fleet, effects + more


def on_stuck(fleet: Fleet, model_id: str, problem: Problem, now: Instant) -> Outcome:
    """Take nothing more in; its memory stays held, and its end is waited for."""
    view = fleet.instance(model_id)
    failures = after_failure(view.failures, problem, now, while_loading=True)
    tripped = breaker_decision(model_id, view.failures, failures, now)
    refusal = model_failed_problem(model_id, problem, STUCK_RETRY_S)
    fifo = [lease.request.ticket for lease in view.leases if lease.slot_since is None and not lease.closed]
    state = transition(view.state, InstanceState.DRAINING)
    view = replace(view, state=state, leases=(), stopping=True, stuck=problem, failures=failures)
    effects: list[Effect] = [
        RecordDecision(action="stuck", model_id=model_id, reason=problem.message),
        *tripped,
    ]
    effects += [Refuse(ticket, refusal) for ticket in fifo]
    fleet, more = _refuse_all(fleet.with_instance(view), model_id, refusal)
    return fleet, effects + more


def _refuse_all(fleet: Fleet, model_id: str, refusal: Problem) -> Outcome:
    """End what wants a model to be loaded: requests, and operations with what went wrong."""
    fleet, effects = refuse_waiters(fleet, model_id, refusal)
    fleet, more = fail_loads(fleet, model_id, fleet.instance(model_id).failures.problem or refusal)
    return fleet, effects + more


def _requeued(lease: Lease, now: Instant, *, deaths: int) -> PendingRequest:
    """Return a request to the queue. The time it had a slot is no time of waiting."""
    served = 0.0 if lease.slot_since is None else now - lease.slot_since
    request = lease.request
    return replace(request, waiting_since=request.waiting_since + served, deaths=deaths)


def _cause_of_two(problem: Problem) -> Problem:
    return EngineFailed(
        f"two engines died while they read this prompt, so it is not tried a third time; the last one: "
        f"{problem.message}"
    ).as_problem()


def on_stopped(fleet: Fleet, model_id: str) -> Outcome:
    """Give back the memory of an instance that was told to stop, and has."""
    view = fleet.instance(model_id)
    tell = RecordDecision(
        action="stopped",
        model_id=model_id,
        reason="it gave its memory back",
        numbers={"freed_mb": view.reserved / MIB},
    )
    return fleet.with_instance(_without_memory(view, InstanceState.STOPPED, view.failures)), [tell]


def _without_memory(view: InstanceView, state: InstanceState, failures: Failures) -> InstanceView:
    return replace(
        view,
        state=transition(view.state, state),
        reserved=0,
        placement=None,
        leases=(),
        stopping=False,
        stuck=None,
        stale=False,
        keep_until=None,
        stays={},
        threads=0,
        failures=failures,
    )
