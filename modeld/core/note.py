# SPDX-License-Identifier: GPL-3.0-only
"""Writes an input down in the fleet: the first half of a scheduling step.

Nothing is decided here but what the input itself says: a request is admitted or refused, a load
succeeded or failed. `core.schedule` draws the conclusions.
"""

from __future__ import annotations

from msgspec.structs import replace

from modeld.core import inputs
from modeld.core.admission import admit, model_failed
from modeld.core.control import end_all, fail_loads, heed, vanished, with_pins
from modeld.core.crowding import without_fattest
from modeld.core.effects import CutReason, Effect, Refuse, Tell
from modeld.core.fleet import REUSE_WINDOW_S, Failures, Fleet, InstanceView, Instant, Lease, Waiter
from modeld.core.inputs import Input
from modeld.core.learned import raised
from modeld.core.leases import close, cut_leases, find_lease, refuse_waiters, with_lease
from modeld.core.lifecycle import State, move
from modeld.core.models import MIB, ModelSpec
from modeld.core.placement import STUCK_RETRY_S
from modeld.core.restart import (
    after_failure,
    after_load,
    after_service,
    crashed,
    is_open,
    told_of_breaker,
    told_of_recovery,
)
from modeld.core.share import settled
from modeld.core.staying import OPERATOR, having_said, until
from modeld.errors import Draining, EngineFailed, OutOfMemory, Problem, QueueFull

SERVICE_WEIGHT = 0.3
"""Weight of the newest sample in the decaying average of service times."""

Outcome = tuple[Fleet, list[Effect]]


def note(fleet: Fleet, event: Input, now: Instant) -> Outcome:
    """Return the fleet after this input, and the effects that the input itself demands."""
    match event:
        case inputs.Arrived():
            return _arrived(fleet, event, now)
        case inputs.Left(ticket=ticket):
            return close(fleet, ticket), []
        case inputs.GotSlot(ticket=ticket):
            return _got_slot(fleet, ticket, now), []
        case inputs.Released():
            return _released(fleet, event, now), []
        case inputs.Loaded(model_id=model_id, slots=slots):
            return _loaded(fleet, model_id, slots, now)
        case inputs.LoadFailed(model_id=model_id, problem=problem):
            return _load_failed(fleet, model_id, problem, now)
        case inputs.Died():
            return _died(fleet, event, now)
        case inputs.Stuck(model_id=model_id, problem=problem):
            return _stuck(fleet, model_id, problem, now)
        case inputs.Stopped(model_id=model_id):
            return _stopped(fleet, model_id)
        case inputs.CatalogChanged(catalog=catalog):
            return _catalog_changed(replace(fleet, catalog=with_pins(catalog, fleet.pins)), fleet)
        case inputs.Wanted(model_id=model_id):
            return fleet.having(replace(fleet.instance(model_id), wanted=True)), []
        case (
            inputs.LoadAsked()
            | inputs.UnloadAsked()
            | inputs.SwitchAsked()
            | inputs.GivenUp()
            | inputs.Pinned()
        ):
            return heed(fleet, event, now)
        case inputs.Drain():
            return end_all(replace(fleet, draining=True))
        case inputs.CutAll():
            return _cut_all(*end_all(replace(fleet, draining=True)))
        case inputs.Tick():
            return fleet, []


def _arrived(fleet: Fleet, event: inputs.Arrived, now: Instant) -> Outcome:
    spec = fleet.catalog.models.get(event.model_id)
    if spec is None:
        return fleet, [Refuse(event.ticket, vanished(event.model_id))]
    deadline = event.deadline
    if fleet.limits.infer_timeout_s is not None:
        own_limit = now + fleet.limits.infer_timeout_s
        deadline = own_limit if deadline is None else min(deadline, own_limit)
    problem = admit(fleet, spec, now, deadline, aside=event.aside)
    effects: list[Effect] = []
    if problem is not None and not event.aside and problem.kind == QueueFull.kind:
        smaller, effects = without_fattest(fleet, spec.id, event.stake, problem, now)
        if effects and admit(smaller, spec, now, deadline) is None:
            fleet, problem = smaller, None
    if problem is not None:
        return fleet, [
            Refuse(event.ticket, problem),
            Tell(action="refuse", model_id=spec.id, reason=problem.message, kind=problem.kind),
        ]
    waiter = Waiter(
        ticket=event.ticket,
        model_id=spec.id,
        arrived=now,
        waiting_since=now,
        deadline=deadline,
        priority=event.priority,
        keep_alive_s=event.keep_alive_s,
        aside=event.aside,
        stake=event.stake,
    )
    view = fleet.instance(spec.id)
    demand = view.reuse_rate(now) * REUSE_WINDOW_S + 1.0
    fleet = fleet.having(replace(view, demand=demand, demand_at=now))
    return replace(fleet, waiting=(*fleet.waiting, waiter)), effects


def _got_slot(fleet: Fleet, ticket: int, now: Instant) -> Fleet:
    found = find_lease(fleet, ticket)
    if found is None:
        return fleet
    view, lease = found
    return fleet.having(replace(with_lease(view, replace(lease, slot_since=now)), last_used=now))


def _released(fleet: Fleet, event: inputs.Released, now: Instant) -> Fleet:
    ticket, served = event.ticket, event.served
    found = find_lease(fleet, ticket)
    if found is None:
        return fleet
    view, lease = found
    service = view.service_s
    if served and lease.slot_since is not None:
        sample = now - lease.slot_since
        service = sample if service is None else service + SERVICE_WEIGHT * (sample - service)
    spec = fleet.catalog.models.get(view.model_id)
    ttl = None if spec is None else spec.ttl_s
    said = lease.keep_alive_s is not None
    view = having_said(
        view,
        lease.stake.owner,
        until(lease.keep_alive_s if said else ttl, now),
        now,
        alone=said and lease.stake.may_unload,
    )
    view = replace(
        view,
        leases=tuple(other for other in view.leases if other.ticket != ticket),
        last_used=now,
        service_s=service,
        failures=after_service(view.failures) if served else view.failures,
        shares=settled(view.shares, lease.stake, event.tokens),
    )
    return fleet.having(view)


def _loaded(fleet: Fleet, model_id: str, slots: int, now: Instant) -> Outcome:
    view = fleet.instance(model_id)
    if view.state is State.DRAINING:  # It was given up while it loaded.
        return fleet, []
    spec = fleet.catalog.models.get(model_id)
    ttl = None if spec is None else spec.ttl_s
    load_s = now - view.load_started
    failures = view.failures
    stays = {OPERATOR: until(ttl, now)} if view.wanted else {}
    view = replace(
        view,
        state=move(view.state, State.READY),
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
        Tell(action="ready", model_id=model_id, reason="it was loaded", numbers=numbers),
        *told_of_recovery(model_id, failures),
    ]
    return replace(fleet.having(view), waiting=waiting, loads=fleet.loads + 1), effects


def _without_load(waiter: Waiter, load_started: Instant, now: Instant) -> Waiter:
    """Take the time of the model's own load out of what counts as waiting for others."""
    return replace(waiter, waiting_since=waiter.waiting_since + now - max(load_started, waiter.arrived))


def _load_failed(fleet: Fleet, model_id: str, problem: Problem, now: Instant) -> Outcome:
    view = fleet.instance(model_id)
    if problem.kind == OutOfMemory.kind and (again := _replanned(fleet, view, problem, now)) is not None:
        return again
    before = view.failures
    failures = after_failure(before, problem, now, while_loading=True)
    fleet = fleet.having(_without_memory(view, State.ERROR, failures))
    refusal = model_failed(model_id, problem, failures.retry_at - now)
    effects: list[Effect] = [
        Tell(
            action="load_failed",
            model_id=model_id,
            reason=problem.message,
            numbers={"failures": failures.in_a_row, "retry_in_s": failures.retry_at - now},
        ),
        *told_of_breaker(model_id, before, failures, now),
    ]
    fleet, more = _refuse_all(fleet, model_id, refusal)
    return fleet, effects + more


def _replanned(fleet: Fleet, view: InstanceView, problem: Problem, now: Instant) -> Outcome | None:
    """Plan a load anew for which memory did not suffice, with a raised estimate; None: it was done before."""
    spec = fleet.catalog.models.get(view.model_id)
    if spec is None or view.failures.in_a_row or (larger := raised(spec)) is None:
        return None
    failures = after_failure(view.failures, problem, now, while_loading=False)
    view = _without_memory(view, State.ERROR, replace(failures, retry_at=now))
    catalog = replace(fleet.catalog, models={**fleet.catalog.models, spec.id: larger})
    before, after = spec.footprint.total / MIB, larger.footprint.total / MIB
    tell = Tell(
        action="replan",
        model_id=spec.id,
        reason=f"memory ran out while it was loaded; its estimate goes from {before:.0f} to {after:.0f} MiB, "
        f"and it is tried once more: {problem.message}",
        numbers={"before_mb": before, "need_mb": after},
    )
    return replace(fleet.having(view), catalog=catalog), [tell]


def _died(fleet: Fleet, event: inputs.Died, now: Instant) -> Outcome:
    """Give the memory back and let those who saw nothing wait again, unless the breaker opened.

    A request that was in a slot begins anew once: if two engines died over it, it may be the cause.
    """
    model_id, problem = event.model_id, event.problem
    view = fleet.instance(model_id)
    failures = crashed(view.failures, problem, now, loading=view.state is State.LOADING)
    spec = fleet.catalog.models.get(model_id)
    before = view.leases
    tripped = told_of_breaker(model_id, view.failures, failures, now)
    view = replace(
        _without_memory(view, State.ERROR, failures),
        restarts=view.restarts + 1,
        wanted=view.wanted or (spec is not None and spec.preload),
    )
    numbers = {"failures": failures.in_a_row, "retry_in_s": failures.retry_at - now}
    effects: list[Effect] = [
        Tell(action="died", model_id=model_id, reason=problem.message, numbers=numbers),
        *tripped,
    ]
    waiting: list[Waiter] = []
    for lease in before:
        in_slot = lease.slot_since is not None or lease.ticket in event.unstarted
        if lease.closed or (in_slot and lease.ticket not in event.unstarted):
            continue
        if in_slot and lease.deaths:
            effects.append(Refuse(lease.ticket, _cause_of_two(problem)))
        else:
            waiting.append(_waiter_again(lease, model_id, now, deaths=lease.deaths + in_slot))
    fleet = replace(fleet.having(view), waiting=(*waiting, *fleet.waiting))
    if not is_open(failures, now):
        return fleet, effects
    fleet, more = _refuse_all(fleet, model_id, model_failed(model_id, problem, failures.retry_at - now))
    return fleet, effects + more


def _stuck(fleet: Fleet, model_id: str, problem: Problem, now: Instant) -> Outcome:
    """Take nothing more in; its memory stays held, and its end is waited for."""
    view = fleet.instance(model_id)
    failures = after_failure(view.failures, problem, now, while_loading=True)
    tripped = told_of_breaker(model_id, view.failures, failures, now)
    refusal = model_failed(model_id, problem, STUCK_RETRY_S)
    fifo = [lease.ticket for lease in view.leases if lease.slot_since is None and not lease.closed]
    state = move(view.state, State.DRAINING)
    view = replace(view, state=state, leases=(), stopping=True, stuck=problem, failures=failures)
    effects: list[Effect] = [
        Tell(action="stuck", model_id=model_id, reason=problem.message),
        *tripped,
    ]
    effects += [Refuse(ticket, refusal) for ticket in fifo]
    fleet, more = _refuse_all(fleet.having(view), model_id, refusal)
    return fleet, effects + more


def _refuse_all(fleet: Fleet, model_id: str, refusal: Problem) -> Outcome:
    """End what wants a model to be loaded: requests, and operations with what went wrong."""
    fleet, effects = refuse_waiters(fleet, model_id, refusal)
    fleet, more = fail_loads(fleet, model_id, fleet.instance(model_id).failures.problem or refusal)
    return fleet, effects + more


def _waiter_again(lease: Lease, model_id: str, now: Instant, *, deaths: int) -> Waiter:
    """Return a request to the queue. The time it had a slot is no time of waiting."""
    served = 0.0 if lease.slot_since is None else now - lease.slot_since
    return Waiter(
        ticket=lease.ticket,
        model_id=model_id,
        arrived=lease.arrived,
        waiting_since=lease.waiting_since + served,
        deadline=lease.deadline,
        priority=lease.priority,
        keep_alive_s=lease.keep_alive_s,
        aside=lease.aside,
        stake=lease.stake,
        deaths=deaths,
    )


def _cause_of_two(problem: Problem) -> Problem:
    return EngineFailed(
        f"two engines died while they read this prompt, so it is not tried a third time; the last one: "
        f"{problem.message}"
    ).as_problem()


def _stopped(fleet: Fleet, model_id: str) -> Outcome:
    view = fleet.instance(model_id)
    tell = Tell(
        action="stopped",
        model_id=model_id,
        reason="it gave its memory back",
        numbers={"freed_mb": view.reserved / MIB},
    )
    return fleet.having(_without_memory(view, State.STOPPED, view.failures)), [tell]


def _without_memory(view: InstanceView, state: State, failures: Failures) -> InstanceView:
    return replace(
        view,
        state=move(view.state, state),
        reserved=0,
        leases=(),
        stopping=False,
        stuck=None,
        stale=False,
        keep_until=None,
        stays={},
        threads=0,
        failures=failures,
    )


def _catalog_changed(fleet: Fleet, before: Fleet) -> Outcome:
    effects: list[Effect] = []
    views: list[InstanceView] = []
    for view in fleet.instances.values():
        old = before.catalog.models.get(view.model_id)
        new = fleet.catalog.models.get(view.model_id)
        if view.state not in {State.READY, State.LOADING} or (
            new is not None and old is not None and _same_load(old, new)
        ):
            continue
        if new is None:
            kind, reason = "gone", "its file is gone"
            views.append(replace(view, state=move(view.state, State.DRAINING)))
        else:
            kind, reason = "changed", "its file or its options changed; the next load takes the new ones"
            views.append(replace(view, stale=True))
        effects.append(Tell(action="drain", model_id=view.model_id, kind=kind, reason=reason))
    gone = [waiter for waiter in fleet.waiting if waiter.model_id not in fleet.catalog.models]
    effects += [Refuse(waiter.ticket, vanished(waiter.model_id)) for waiter in gone]
    waiting = tuple(waiter for waiter in fleet.waiting if waiter not in gone)
    fleet = replace(fleet.having(*views), waiting=waiting)
    for model_id in {one.model_id for one in fleet.operations} - set(fleet.catalog.models):
        fleet, more = fail_loads(fleet, model_id, vanished(model_id))
        effects += more
    return fleet, effects


def _same_load(old: ModelSpec, new: ModelSpec) -> bool:
    return (old.path, old.size_bytes, old.modified_ns, old.options) == (
        new.path,
        new.size_bytes,
        new.modified_ns,
        new.options,
    )


def _cut_all(fleet: Fleet, effects: list[Effect]) -> Outcome:
    problem = Draining("the daemon shut down before this request was served; send it again").as_problem()
    effects += [Refuse(waiter.ticket, problem) for waiter in fleet.waiting]
    fleet = replace(fleet, waiting=())
    for model_id in fleet.instances:
        fleet, cuts = cut_leases(fleet, model_id, CutReason.SHUTDOWN, problem)
        effects += cuts
    return fleet, effects
