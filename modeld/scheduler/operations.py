# SPDX-License-Identifier: GPL-3.0-only
"""Operators' loads, unloads, switches and pins, from start to end.

An operation is no lock: it is one more demand, and the last wish counts.

- A load is a demand like a request of class `normal`, and shares one load with all who want the model.
  It gives it up that the model goes for an earlier operation, as far as that has not stopped it yet.
- An unload withdraws the loads of the model that were asked for before. The model takes no new requests and
  goes when it is idle; who waits is kept and loads it again afterwards. By force, requests in its slots are
  cut with a legal last event, and those that wait are refused.
- A switch is a load; once its model is ready, all others that are not pinned leave as by an unload. A
  load that fails brings back what went for it.
- Each operation ends exactly once: done, failed or cancelled.
"""

from __future__ import annotations

from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState, transition
from modeld.domain.operation import Operation, OperationKind, OperationState
from modeld.errors import Conflict, Draining, ModelNotFound, Problem, QueueFull, Unloaded
from modeld.scheduler import inputs
from modeld.scheduler.admission import model_failed_problem, unavailable
from modeld.scheduler.capacity import STUCK_RETRY_S
from modeld.scheduler.draining import cut_deadline
from modeld.scheduler.effects import CutReason, Effect, EndOperation, Outcome, RecordDecision, RefuseOperation
from modeld.scheduler.keep_alive import OPERATOR, expires_at, extended, pin, with_keep_alive
from modeld.scheduler.queue_order import cut_leases, refuse_waiters
from modeld.scheduler.state import Fleet, Instant

# ----------------------------------------------------------------------
# How operations come to their ends: what was asked for is there, or cannot be had any more.


def complete_operations(fleet: Fleet, now: Instant) -> Outcome:
    """Rule 1: end operations that have what they asked for; switches go on to their second half."""
    effects: list[Effect] = []
    for asked_for in fleet.operations:
        one = _with_victims(fleet, asked_for)
        if one.wants_load and fleet.instance(one.model_id).state is InstanceState.READY:
            fleet = _keep(fleet, one, now)
            one = replace(one, wants_load=False)
            if one.kind is OperationKind.SWITCH:
                fleet, one = _evict_others(fleet, one, now)
        if one is not asked_for:
            fleet = with_operation(fleet, one)
        if not one.wants_load:
            fleet, more = _progress_departures(fleet, one, now)
            effects += more
    return fleet, effects


def _with_victims(fleet: Fleet, one: Operation) -> Operation:
    """Note which models have gone, or go, for a load."""
    if not one.wants_load:
        return one
    victims = [
        victim
        for reservation in fleet.reservations
        if reservation.committed and reservation.model_id == one.model_id
        for victim in reservation.victims
    ]
    evicted = tuple(dict.fromkeys((*one.evicted, *victims)))
    return one if evicted == one.evicted else replace(one, evicted=evicted)


def _keep(fleet: Fleet, one: Operation, now: Instant) -> Fleet:
    """Let a model's idle time begin again; without a `keep_alive` of its own it is only ever prolonged."""
    view = fleet.instance(one.model_id)
    spec = fleet.catalog.models.get(one.model_id)
    if one.keep_alive_s is not None:
        view = with_keep_alive(view, OPERATOR, expires_at(one.keep_alive_s, now), now, alone=True)
    else:
        view = extended(view, expires_at(None if spec is None else spec.ttl_s, now))
    return fleet.with_instance(replace(view, last_used=now))


def _evict_others(fleet: Fleet, one: Operation, now: Instant) -> tuple[Fleet, Operation]:
    """Return what else goes for a switch whose model is ready; what somebody asked for since stays."""
    views = [
        view
        for view in fleet.instances.values()
        if view.model_id != one.model_id
        and not fleet.is_pinned(view.model_id)
        and not any(fleet.loading_for(view.model_id))
    ]
    leaving = tuple(view.model_id for view in views if view.state.holds_memory and view.stuck is None)
    fleet = fleet.with_instance(*(replace(view, wanted=False) for view in views if view.wanted))
    return fleet, replace(one, departing=leaving, departing_since=now, departing_total=len(leaving))


def _progress_departures(fleet: Fleet, one: Operation, now: Instant) -> Outcome:
    """Note which models are gone, cut what runs where that is allowed, and end what is done."""
    unload = one.kind is OperationKind.UNLOAD
    staying = [model_id for model_id in one.departing if fleet.is_pinned(model_id)]
    stuck = next((it for it in map(fleet.instance, one.departing) if it.stuck is not None), None)
    if unload and stuck is not None:
        return end(fleet, one, OperationState.FAILED, "it hangs", stuck.stuck)
    if unload and staying:
        return end(fleet, one, OperationState.CANCELLED, "it was pinned meanwhile")
    leaving = tuple(
        view.model_id
        for view in map(fleet.instance, one.departing)
        if view.state.holds_memory and view.stuck is None and view.model_id not in staying
    )
    gone = [
        model_id
        for model_id in one.departing
        if not unload and not fleet.instance(model_id).state.holds_memory and model_id not in one.evicted
    ]
    if leaving != one.departing:
        one = replace(one, departing=leaving, evicted=(*one.evicted, *gone))
        fleet = with_operation(fleet, one)
    if not leaving:
        return end(fleet, one, OperationState.DONE, _done(one))
    if not fleet.limits.cut_streams:
        return fleet, []
    effects: list[Effect] = []
    for model_id in leaving:
        if now < cut_deadline(fleet, one, model_id):
            continue
        problem = Unloaded(
            f"model {model_id} is unloaded, and this request was not done within "
            f"{fleet.limits.evict_timeout_s:g} s (evict_timeout); send it again to have it loaded"
        ).as_problem()
        fleet, cuts = cut_leases(fleet, model_id, CutReason.UNLOADED, problem)
        effects += cuts
    return fleet, effects


def _done(one: Operation) -> str:
    match one.kind:
        case OperationKind.LOAD:
            return f"{one.model_id} is ready"
        case OperationKind.UNLOAD if one.departing_total:
            return f"{one.model_id} is out of memory"
        case OperationKind.UNLOAD:
            return f"{one.model_id} was not in memory"
        case OperationKind.SWITCH:
            went = ", ".join(one.evicted) or "nothing"
            return f"{one.model_id} is ready, and {went} went for it"


def end(
    fleet: Fleet, one: Operation, state: OperationState, reason: str, problem: Problem | None = None
) -> Outcome:
    """End an operation; it is told to who waits for it."""
    return without_operation(fleet, one), [EndOperation(one, state, reason, problem)]


def with_operation(fleet: Fleet, one: Operation) -> Fleet:
    """Return the fleet with this operation in place of its earlier self."""
    operations = tuple(one if other.id == one.id else other for other in fleet.operations)
    return replace(fleet, operations=operations)


def without_operation(fleet: Fleet, one: Operation) -> Fleet:
    """Take an operation off the list of those that run."""
    return replace(fleet, operations=tuple(other for other in fleet.operations if other.id != one.id))


# ----------------------------------------------------------------------

MOST_RUNNING = 100
"""Operations at a time; more are refused."""


def handle_operation(
    fleet: Fleet, event: inputs.Asked | inputs.OperationCancelled | inputs.PinChanged, now: Instant
) -> Outcome:
    """Take an operator's wish in."""
    match event:
        case inputs.OperationCancelled():
            return _cancelled(fleet, event)
        case inputs.PinChanged(model_id=model_id, pinned=pinned, key=key):
            return pin(fleet, model_id, pinned=pinned, key=key)
        case _:
            return _requested(fleet, event, now)


def _requested(fleet: Fleet, event: inputs.Asked, now: Instant) -> Outcome:
    """Begin an operation, or refuse it and say why. What it supersedes ends."""
    problem = _refusal(fleet, event, now)
    if problem is not None:
        return fleet, [RefuseOperation(event.operation, problem, event.model_id, event.key)]
    match event:
        case inputs.LoadRequested():
            return _load(fleet, event, now)
        case inputs.UnloadRequested():
            return _unload(fleet, event, now)
        case inputs.SwitchRequested():
            return _switch(fleet, event, now)


def _refusal(fleet: Fleet, event: inputs.Asked, now: Instant) -> Problem | None:
    spec = fleet.catalog.models.get(event.model_id)
    if spec is None:
        return model_vanished(event.model_id)
    if fleet.draining:
        return _shutting_down()
    if len(fleet.operations) >= MOST_RUNNING:
        return QueueFull(
            f"{MOST_RUNNING} operations run already; wait until one ends, or give one up "
            "(GET and DELETE /operations)",
            details={"operations": len(fleet.operations)},
        ).as_problem()
    if not isinstance(event, inputs.UnloadRequested):
        return unavailable(fleet, spec, now)
    stuck = fleet.instance(spec.id).stuck
    if stuck is not None:
        return model_failed_problem(spec.id, stuck, STUCK_RETRY_S)
    if fleet.is_pinned(spec.id):
        return Conflict(
            f"model {spec.id} is pinned, so it stays; let it go first: "
            f'POST /models/{spec.id}/pin {{"pinned": false}}'
        ).as_problem()
    return None


def _load(fleet: Fleet, event: inputs.LoadRequested, now: Instant) -> Outcome:
    effects: list[Effect] = []
    if event.pin is not None:
        fleet, effects = pin(fleet, event.model_id, pinned=event.pin, key=event.key)
    fleet, more = _stays(fleet, event.model_id, event.operation)
    operation = _operation(event, OperationKind.LOAD, now)
    operation = replace(operation, wants_load=True, keep_alive_s=event.keep_alive_s)
    return _with_operation(fleet, operation), effects + more


def _unload(fleet: Fleet, event: inputs.UnloadRequested, now: Instant) -> Outcome:
    model_id = event.model_id
    fleet, effects = _withdraw(fleet, {model_id}, f"operation {event.operation} unloads it")
    fleet = fleet.with_instance(replace(fleet.instance(model_id), wanted=False))
    if event.force:
        fleet, more = _clear(fleet, model_id, event.key)
        effects += more
    held = fleet.instance(model_id).state.holds_memory
    operation = replace(
        _operation(event, OperationKind.UNLOAD, now),
        departing=(model_id,) if held else (),
        departing_since=now,
        departing_total=int(held),
    )
    return _with_operation(fleet, operation), effects


def _switch(fleet: Fleet, event: inputs.SwitchRequested, now: Instant) -> Outcome:
    others = {one.model_id for one in fleet.operations} - {event.model_id}
    why = f"operation {event.operation} switches to {event.model_id}"
    fleet, effects = _withdraw(fleet, others, why)
    fleet, more = _stays(fleet, event.model_id, event.operation)
    operation = replace(_operation(event, OperationKind.SWITCH, now), wants_load=True)
    return _with_operation(fleet, operation), effects + more


def _operation(event: inputs.Asked, kind: OperationKind, now: Instant) -> Operation:
    """Return the record of what was just asked for, as far as all kinds are alike."""
    return Operation(id=event.operation, kind=kind, model_id=event.model_id, since=now, key=event.key)


def _with_operation(fleet: Fleet, operation: Operation) -> Fleet:
    return replace(fleet, operations=(*fleet.operations, operation))


def _withdraw(fleet: Fleet, models: set[str], why: str) -> Outcome:
    """End the loads and switches to these models: a later operation asked for the opposite."""
    effects: list[Effect] = []
    for one in fleet.operations:
        if one.kind is not OperationKind.UNLOAD and one.model_id in models:
            fleet = without_operation(fleet, one)
            effects.append(EndOperation(one, OperationState.CANCELLED, why))
    return fleet, effects


def _stays(fleet: Fleet, model_id: str, by: str) -> Outcome:
    """Take a model out of what earlier operations unload, unless it has been told to stop."""
    effects: list[Effect] = []
    if fleet.instance(model_id).state is InstanceState.DRAINING:
        return fleet, effects
    for one in fleet.operations:
        if model_id not in one.departing:
            continue
        if one.kind is OperationKind.UNLOAD:
            fleet = without_operation(fleet, one)
            effects.append(EndOperation(one, OperationState.CANCELLED, f"operation {by} loads it"))
        else:
            left = tuple(other for other in one.departing if other != model_id)
            fleet = with_operation(fleet, replace(one, departing=left))
    return fleet, effects


def _clear(fleet: Fleet, model_id: str, key: str) -> Outcome:
    """End all requests of a model, and have it stop."""
    problem = Unloaded(
        f"model {model_id} was unloaded by force while this request needed it; "
        "send it again to have it loaded"
    ).as_problem()
    fleet, effects = cut_leases(fleet, model_id, CutReason.UNLOADED, problem)
    fleet, more = refuse_waiters(fleet, model_id, problem)
    view = fleet.instance(model_id)
    if view.state.holds_memory and view.state is not InstanceState.DRAINING:
        fleet = fleet.with_instance(replace(view, state=transition(view.state, InstanceState.DRAINING)))
        ended = f"{len(effects)} requests with a place and {len(more)} others were ended"
        tell = RecordDecision(
            action="unload",
            model_id=model_id,
            reason=f"an operator unloads it by force; {ended}",
            numbers={"cut": len(effects), "refused": len(more)},
            kind="operator",
            key=key,
        )
        return fleet, [*effects, *more, tell]
    return fleet, effects + more


def _cancelled(fleet: Fleet, event: inputs.OperationCancelled) -> Outcome:
    """End an operation that nobody wants any more. What others wait for goes on; a load without them ends."""
    one = next((one for one in fleet.operations if one.id == event.operation), None)
    if one is None:
        return fleet, []
    fleet, effects = end(fleet, one, OperationState.CANCELLED, _cancelled_by(one, event.key))
    view = fleet.instance(one.model_id)
    if one.wants_load and view.state is InstanceState.LOADING and not fleet.is_wanted(one.model_id):
        fleet = fleet.with_instance(replace(view, state=transition(view.state, InstanceState.DRAINING)))
        reason = f"operation {one.id} was given up, and nobody else waits for it"
        tell = RecordDecision(
            action="unload", model_id=one.model_id, reason=reason, kind="operator", key=event.key
        )
        effects.append(tell)
    return fleet, effects


def _cancelled_by(one: Operation, key: str) -> str:
    return f"it was given up by {key}" if key and key != one.key else "it was given up"


def fail_loads(fleet: Fleet, model_id: str, problem: Problem) -> Outcome:
    """End the operations that want a model which cannot be loaded. A switch brings back what went for it."""
    effects: list[Effect] = []
    for one in list(fleet.loading_for(model_id)):
        fleet, more = end(fleet, one, OperationState.FAILED, "it cannot be loaded", problem)
        effects += more
        if one.kind is OperationKind.SWITCH:
            victims = [fleet.instance(victim) for victim in one.evicted if victim in fleet.catalog.models]
            fleet = fleet.with_instance(
                *(replace(view, wanted=True) for view in victims if view.state is not InstanceState.READY)
            )
    return fleet, effects


def end_all(fleet: Fleet) -> Outcome:
    """End all operations: the daemon goes down."""
    problem = _shutting_down()
    ends: list[Effect] = [
        EndOperation(one, OperationState.CANCELLED, problem.message, problem) for one in fleet.operations
    ]
    return replace(fleet, operations=()), ends


def model_vanished(model_id: str) -> Problem:
    """Return what is told of a model whose file is gone."""
    return ModelNotFound(f"model {model_id} is gone: its file was removed").as_problem()


def _shutting_down() -> Problem:
    return Draining("the daemon is shutting down and takes no new requests; try again soon").as_problem()
