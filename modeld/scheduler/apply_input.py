# SPDX-License-Identifier: GPL-3.0-only
"""Apply an input to the fleet: the first half of a scheduling step.

Nothing is decided here but what the input itself says: a request is admitted or refused, a load
succeeded or failed. `scheduler.step` draws the conclusions.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState, transition
from modeld.domain.model import ModelSpec
from modeld.domain.request import Tenant
from modeld.errors import Draining, Problem, QueueFull
from modeld.scheduler import inputs
from modeld.scheduler.admission import admit, after_service
from modeld.scheduler.effects import CutReason, Effect, Outcome, RecordDecision, Refuse
from modeld.scheduler.eta import retry_after
from modeld.scheduler.fair_queue import settle_shares
from modeld.scheduler.inputs import Input
from modeld.scheduler.instance_outcomes import on_died, on_load_failed, on_loaded, on_stopped, on_stuck
from modeld.scheduler.keep_alive import expires_at, with_keep_alive, with_pins
from modeld.scheduler.memory_pressure import apply_device_readings
from modeld.scheduler.operations import end_all, fail_loads, handle_operation, model_vanished
from modeld.scheduler.queue_order import cut_leases, find_lease, remove_ended_request, urgency, with_lease
from modeld.scheduler.state import REUSE_WINDOW_S, Fleet, InstanceView, Instant, PendingRequest

# ----------------------------------------------------------------------
# Longest queue drop, as in FQ-CoDel (RFC 8290, 4.1.2): in a full queue the newest request of the longest line
# gives way, so that an owner who fills the queue keeps nobody else out.


def drop_from_longest_queue(
    fleet: Fleet, model_id: str, tenant: Tenant, full: Problem, now: Instant
) -> tuple[Fleet, list[Effect]]:
    """Make a place in a full queue, if another owner has more than its share of the places in it.

    That owner's last request gives way. `full` says which queue it is, that of the model or the common one.

    Returns: the fleet without that request, and its refusal; or the fleet as it is, and no effect.
    """
    common = "max_queue_total" in full.details
    places = [it for it in fleet.waiting if not it.needs_no_slot and (common or it.model_id == model_id)]
    fattest = _longest_queue(places, tenant)
    if fattest is None:
        return fleet, []
    victim = max((it for it in places if it.tenant.owner == fattest), key=lambda it: urgency(it, now))
    has = sum(it.tenant.owner == fattest for it in places)
    retry = retry_after(fleet, victim.model_id, now)
    problem = QueueFull(
        f"the queue is full, and this key has {has} of {len(places)} places in it, more than its share, so "
        f"this request gave way to another key's; try again in {retry} s",
        details={**full.details, "own": has},
        retry_after_s=retry,
    ).as_problem()
    waiting = tuple(it for it in fleet.waiting if it.ticket != victim.ticket)
    return replace(fleet, waiting=waiting), [Refuse(victim.ticket, problem)]


def _longest_queue(places: Collection[PendingRequest], tenant: Tenant) -> str | None:
    """Return the owner with the most places by weight, if it has more than the newcomer then would."""
    taken: dict[str, float] = {tenant.owner: 1 / tenant.weight}
    for it in places:
        taken[it.tenant.owner] = taken.get(it.tenant.owner, 0.0) + 1 / it.tenant.weight
    owner = max(taken, key=lambda owner: (taken[owner], owner))
    return owner if taken[owner] > taken[tenant.owner] else None


# ----------------------------------------------------------------------

SERVICE_WEIGHT = 0.3
"""Weight of the newest sample in the decaying average of service times."""


def apply_input(fleet: Fleet, event: Input, now: Instant) -> Outcome:
    """Return the fleet after this input, and the effects that the input itself demands."""
    match event:
        case inputs.RequestArrived(request=request):
            return _arrived(fleet, request, now)
        case inputs.RequestLeft(ticket=ticket):
            return remove_ended_request(fleet, ticket), []
        case inputs.SlotTaken(ticket=ticket):
            return _got_slot(fleet, ticket, now), []
        case inputs.SlotReleased():
            return _released(fleet, event, now), []
        case inputs.InstanceLoaded(model_id=model_id, slots=slots):
            return on_loaded(fleet, model_id, slots, now)
        case inputs.InstanceLoadFailed(model_id=model_id, problem=problem):
            return on_load_failed(fleet, model_id, problem, now)
        case inputs.InstanceDied():
            return on_died(fleet, event, now)
        case inputs.InstanceStuck(model_id=model_id, problem=problem):
            return on_stuck(fleet, model_id, problem, now)
        case inputs.InstanceStopped(model_id=model_id):
            return on_stopped(fleet, model_id)
        case inputs.CatalogChanged(catalog=catalog):
            return _catalog_changed(replace(fleet, catalog=with_pins(catalog, fleet.pins)), fleet, now)
        case inputs.ModelWanted(model_id=model_id):
            return fleet.with_instance(replace(fleet.instance(model_id), wanted=True)), []
        case (
            inputs.LoadRequested()
            | inputs.UnloadRequested()
            | inputs.SwitchRequested()
            | inputs.OperationCancelled()
            | inputs.PinChanged()
        ):
            return handle_operation(fleet, event, now)
        case inputs.DrainAll() | inputs.CutAllRequests():
            fleet, effects = end_all(replace(fleet, draining=True))
            return (fleet, effects) if isinstance(event, inputs.DrainAll) else _cut_all(fleet, effects)
        case inputs.DevicesChanged(devices=devices):
            return apply_device_readings(fleet, devices)
        case inputs.Tick():
            return fleet, []


def _arrived(fleet: Fleet, request: PendingRequest, now: Instant) -> Outcome:
    spec = fleet.catalog.models.get(request.model_id)
    if spec is None:
        return fleet, [Refuse(request.ticket, model_vanished(request.model_id))]
    deadline = request.deadline
    if fleet.limits.infer_timeout_s is not None:
        own_limit = now + fleet.limits.infer_timeout_s
        deadline = own_limit if deadline is None else min(deadline, own_limit)
    problem = admit(fleet, spec, now, deadline, needs_no_slot=request.needs_no_slot)
    effects: list[Effect] = []
    if problem is not None and not request.needs_no_slot and problem.kind == QueueFull.kind:
        smaller, effects = drop_from_longest_queue(fleet, spec.id, request.tenant, problem, now)
        if effects and admit(smaller, spec, now, deadline) is None:
            fleet, problem = smaller, None
    if problem is not None:
        return fleet, [
            Refuse(request.ticket, problem),
            RecordDecision(action="refuse", model_id=spec.id, reason=problem.message, kind=problem.kind),
        ]
    waiter = replace(request, model_id=spec.id, arrived=now, waiting_since=now, deadline=deadline)
    view = fleet.instance(spec.id)
    demand = view.reuse_rate(now) * REUSE_WINDOW_S + 1.0
    fleet = fleet.with_instance(replace(view, demand=demand, demand_at=now))
    return replace(fleet, waiting=(*fleet.waiting, waiter)), effects


def _got_slot(fleet: Fleet, ticket: int, now: Instant) -> Fleet:
    found = find_lease(fleet, ticket)
    if found is None:
        return fleet
    view, lease = found
    return fleet.with_instance(replace(with_lease(view, replace(lease, slot_since=now)), last_used=now))


def _released(fleet: Fleet, event: inputs.SlotReleased, now: Instant) -> Fleet:
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
    said = lease.request.keep_alive_s is not None
    view = with_keep_alive(
        view,
        lease.request.tenant.owner,
        expires_at(lease.request.keep_alive_s if said else ttl, now),
        now,
        alone=said and lease.request.tenant.may_unload,
    )
    view = replace(
        view,
        leases=tuple(other for other in view.leases if other.request.ticket != ticket),
        last_used=now,
        service_s=service,
        failures=after_service(view.failures) if served else view.failures,
        shares=settle_shares(view.shares, lease.request.tenant, event.tokens),
    )
    return fleet.with_instance(view)


def _catalog_changed(fleet: Fleet, before: Fleet, now: Instant) -> Outcome:
    effects: list[Effect] = []
    views: list[InstanceView] = []
    for view in fleet.instances.values():
        old = before.catalog.models.get(view.model_id)
        new = fleet.catalog.models.get(view.model_id)
        if new is not None and old is not None and _same_load(old, new):
            continue
        if view.state not in {InstanceState.READY, InstanceState.LOADING}:
            failed = view.failures
            if new is not None and failed.retry_at > now and not failed.breaker:  # It was another file.
                views.append(replace(view, failures=replace(failed, retry_at=now)))
            continue
        if new is None:
            kind, reason = "gone", "its file is gone"
            views.append(replace(view, state=transition(view.state, InstanceState.DRAINING)))
        else:
            kind, reason = "changed", "its file or its options changed; the next load takes the new ones"
            views.append(replace(view, stale=True))
        effects.append(RecordDecision(action="drain", model_id=view.model_id, kind=kind, reason=reason))
    gone = [waiter for waiter in fleet.waiting if waiter.model_id not in fleet.catalog.models]
    effects += [Refuse(waiter.ticket, model_vanished(waiter.model_id)) for waiter in gone]
    waiting = tuple(waiter for waiter in fleet.waiting if waiter not in gone)
    fleet = replace(fleet.with_instance(*views), waiting=waiting)
    for model_id in {one.model_id for one in fleet.operations} - set(fleet.catalog.models):
        fleet, more = fail_loads(fleet, model_id, model_vanished(model_id))
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
