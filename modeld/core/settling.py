# SPDX-License-Identifier: GPL-3.0-only
"""How operations come to their ends: what was asked for is there, or cannot be had any more."""

from __future__ import annotations

from msgspec.structs import replace

from modeld.core.effects import CutReason, Effect, EndOperation
from modeld.core.fleet import Fleet
from modeld.core.gates import cuts_at
from modeld.core.instant import Instant
from modeld.core.leases import cut_leases
from modeld.core.lifecycle import State
from modeld.core.operations import Operation, OperationKind, OperationState
from modeld.core.outcome import Outcome
from modeld.core.staying import OPERATOR, having_said, prolonged, until
from modeld.errors import Problem, Unloaded


def settle(fleet: Fleet, now: Instant) -> Outcome:
    """End the operations that have what they asked for, and let switches go on to their second half."""
    effects: list[Effect] = []
    for asked_for in fleet.operations:
        one = _noting_victims(fleet, asked_for)
        if one.wants_load and fleet.instance(one.model_id).state is State.READY:
            fleet = _keep(fleet, one, now)
            one = replace(one, wants_load=False)
            if one.kind is OperationKind.SWITCH:
                fleet, one = _others_leave(fleet, one, now)
        if one is not asked_for:
            fleet = with_operation(fleet, one)
        if not one.wants_load:
            fleet, more = _see_off(fleet, one, now)
            effects += more
    return fleet, effects


def _noting_victims(fleet: Fleet, one: Operation) -> Operation:
    """Note which models have gone, or go, for a load."""
    if not one.wants_load:
        return one
    victims = [
        victim
        for claim in fleet.claims
        if claim.committed and claim.model_id == one.model_id
        for victim in claim.victims
    ]
    evicted = tuple(dict.fromkeys((*one.evicted, *victims)))
    return one if evicted == one.evicted else replace(one, evicted=evicted)


def _keep(fleet: Fleet, one: Operation, now: Instant) -> Fleet:
    """Let a model's idle time begin anew; without a `keep_alive` of its own it is only ever prolonged."""
    view = fleet.instance(one.model_id)
    spec = fleet.catalog.models.get(one.model_id)
    if one.keep_alive_s is not None:
        view = having_said(view, OPERATOR, until(one.keep_alive_s, now), now, alone=True)
    else:
        view = prolonged(view, until(None if spec is None else spec.ttl_s, now))
    return fleet.having(replace(view, last_used=now))


def _others_leave(fleet: Fleet, one: Operation, now: Instant) -> tuple[Fleet, Operation]:
    """Return what else goes for a switch whose model is ready; what somebody asked for since stays."""
    views = [
        view
        for view in fleet.instances.values()
        if view.model_id != one.model_id
        and not fleet.is_pinned(view.model_id)
        and not any(fleet.loading_for(view.model_id))
    ]
    leaving = tuple(view.model_id for view in views if view.state.holds_memory and view.stuck is None)
    fleet = fleet.having(*(replace(view, wanted=False) for view in views if view.wanted))
    return fleet, replace(one, leaving=leaving, leaving_since=now, leaving_total=len(leaving))


def _see_off(fleet: Fleet, one: Operation, now: Instant) -> Outcome:
    """Note which models are gone, cut what runs where that is allowed, and end what is done."""
    unload = one.kind is OperationKind.UNLOAD
    staying = [model_id for model_id in one.leaving if fleet.is_pinned(model_id)]
    stuck = next((it for it in map(fleet.instance, one.leaving) if it.stuck is not None), None)
    if unload and stuck is not None:
        return end(fleet, one, OperationState.FAILED, "it hangs", stuck.stuck)
    if unload and staying:
        return end(fleet, one, OperationState.CANCELLED, "it was pinned meanwhile")
    leaving = tuple(
        view.model_id
        for view in map(fleet.instance, one.leaving)
        if view.state.holds_memory and view.stuck is None and view.model_id not in staying
    )
    gone = [
        model_id
        for model_id in one.leaving
        if not unload and not fleet.instance(model_id).state.holds_memory and model_id not in one.evicted
    ]
    if leaving != one.leaving:
        one = replace(one, leaving=leaving, evicted=(*one.evicted, *gone))
        fleet = with_operation(fleet, one)
    if not leaving:
        return end(fleet, one, OperationState.DONE, _done(one))
    if not fleet.limits.cut_streams:
        return fleet, []
    effects: list[Effect] = []
    for model_id in leaving:
        if now < cuts_at(fleet, one, model_id):
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
        case OperationKind.UNLOAD if one.leaving_total:
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
