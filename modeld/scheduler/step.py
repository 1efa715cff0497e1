# SPDX-License-Identifier: GPL-3.0-only
"""Decide what follows from one input: `step(fleet, input, now) -> (fleet, effects)`. Pure.

`apply_input.apply_input` first writes the input into the fleet. Then these rules run on the new state, in
this order; each function named here has its number in its docstring:

    1. `operations.complete_operations`: end operations that have what they asked for
    2. `admission.end_overdue_requests`: end requests whose deadline or longest wait has passed
    3. `reservations.drop_stale`: drop reservations that no demand needs any more
    4. `step.grant`: ready instances take waiting requests, as far as their gates let them (`draining`)
    5. `loading.load_demands`: load models that requests wait for, and make room for them. Rule 4 then runs
       again, for gates that opened
    6. `memory_pressure.evict_for_foreign_memory`: unload idle models that other processes' memory leaves no
       room for
    7. `step.stop`: stop idle instances that drain, are out of date, expired, or go for an
       operator
    8. `step.share_cores`: share the cores among the instances that decode
    9. `step.remove_gone`: forget models that left the catalogue
"""

from __future__ import annotations

from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState, transition
from modeld.domain.operation import Operation
from modeld.scheduler.admission import end_overdue_requests
from modeld.scheduler.apply_input import apply_input
from modeld.scheduler.capacity import threads_for
from modeld.scheduler.deadlines import idle_deadline
from modeld.scheduler.draining import gate_admits
from modeld.scheduler.effects import ChangeThreads, Effect, Grant, Outcome, RecordDecision, StopInstance
from modeld.scheduler.fair_queue import fair_turns, may_queue, with_turns_begun
from modeld.scheduler.inputs import Input, SlotTaken
from modeld.scheduler.loading import load_demands
from modeld.scheduler.memory_pressure import evict_for_foreign_memory
from modeld.scheduler.operations import complete_operations
from modeld.scheduler.queue_order import waiting_by_urgency
from modeld.scheduler.reservations import drop_stale
from modeld.scheduler.state import Fleet, InstanceView, Instant, Lease, PendingRequest


def step(fleet: Fleet, event: Input, now: Instant) -> Outcome:
    """Take in one input and decide everything that follows from it.

    Returns: the fleet after it, and the effects to perform, in their order.
    Raises: ValueError for an input that contradicts the state, which is a defect.
    """
    fleet, effects = apply_input(fleet, event, now)
    if isinstance(event, SlotTaken):  # It only says when: no rule looks at that. What is due is for `Tick`.
        return fleet, effects
    for rule in RULES:
        fleet, more = rule(fleet, now)
        effects += more
    return fleet, effects


def grant(fleet: Fleet, now: Instant) -> Outcome:
    """Rule 4: fill each ready instance's slots and its FIFO, which has room for one round of slots.

    What needs no slot passes by them.
    """
    effects: list[Effect] = []
    if not fleet.waiting:
        return fleet, effects
    for model_id in dict.fromkeys(waiter.model_id for waiter in fleet.waiting):
        view = fleet.instance(model_id)
        if view.state is not InstanceState.READY:
            continue
        waiters = waiting_by_urgency(fleet, view.model_id, now)
        entering = [waiter for waiter in waiters if gate_admits(fleet, view, waiter.arrived, now)]
        chosen = [waiter for waiter in entering if waiter.needs_no_slot]
        view = replace(view, leases=view.leases + tuple(map(_lease, chosen))) if chosen else view
        room = 2 * view.slots - view.slot_leases
        in_line = [waiter for waiter in entering if not waiter.needs_no_slot]
        before, view = view, with_turns_begun(fleet, view, in_line)
        if view is not before:
            fleet = fleet.with_instance(view)
        turns = fair_turns(fleet, view, in_line if room > 0 else ())
        for waiter in turns:
            if room <= 0 or not may_queue(fleet, view, waiter):
                break
            room -= 1
            chosen.append(waiter)
            view = replace(view, leases=(*view.leases, _lease(waiter)), shares=turns.shares)
        if not chosen:
            continue
        taken = {waiter.ticket for waiter in chosen}
        fleet = replace(
            fleet.with_instance(view),
            waiting=tuple(waiter for waiter in fleet.waiting if waiter.ticket not in taken),
        )
        effects += [Grant(waiter.ticket, view.model_id) for waiter in chosen]
    return fleet, effects


def _lease(waiter: PendingRequest) -> Lease:
    return Lease(request=waiter)


def stop(fleet: Fleet, now: Instant) -> Outcome:
    """Rule 7: stop idle instances that drain, are out of date, expired, or go for an operator."""
    effects: list[Effect] = []
    for view in fleet.instances.values():
        if not view.idle or view.stopping:
            continue
        due = idle_deadline(fleet, view)
        if view.state is InstanceState.READY and view.stale:
            reason = "its file or its options changed, and it is idle now"
            effects.append(
                RecordDecision(action="unload", model_id=view.model_id, kind="changed", reason=reason)
            )
        elif due is not None and now >= due:
            reason = f"idle since {now - view.last_used:.1f} s, its time to live"
            effects.append(RecordDecision(action="unload", model_id=view.model_id, kind="ttl", reason=reason))
        elif (operation := _departs_for(fleet, view)) is not None:
            reason = f"operation {operation.id} ({operation.kind} {operation.model_id}) asked for it"
            tell = RecordDecision(
                action="unload", model_id=view.model_id, reason=reason, kind="operator", key=operation.key
            )
            effects.append(tell)
        elif view.state is not InstanceState.DRAINING:
            continue
        state = transition(view.state, InstanceState.DRAINING)
        fleet = fleet.with_instance(replace(view, state=state, stopping=True))
        effects.append(StopInstance(view.model_id))
    return fleet, effects


def _departs_for(fleet: Fleet, view: InstanceView) -> Operation | None:
    """Return the operation for which an idle model goes now: not while it is loaded for somebody."""
    if view.state is InstanceState.READY or (
        view.state is InstanceState.LOADING and not fleet.is_wanted(view.model_id)
    ):
        return fleet.departing_for(view.model_id)
    return None


def share_cores(fleet: Fleet, _now: Instant) -> Outcome:
    """Rule 8: share the cores among the instances that decode; idle ones keep what they had."""
    effects: list[Effect] = []
    busy = sum(not view.idle for view in fleet.instances.values())
    for view in fleet.instances.values():
        spec = fleet.catalog.models.get(view.model_id)
        if view.state is not InstanceState.READY or view.idle or spec is None:
            continue
        threads = threads_for(fleet.limits.cores, spec.options.threads, busy)
        if threads != view.threads:
            fleet = fleet.with_instance(replace(view, threads=threads))
            effects.append(ChangeThreads(view.model_id, threads))
    return fleet, effects


def remove_gone(fleet: Fleet, _now: Instant) -> Outcome:
    """Rule 9: forget models that are gone from the catalogue, once they hold nothing."""
    gone = {
        model_id
        for model_id, view in fleet.instances.items()
        if model_id not in fleet.catalog.models and not view.state.holds_memory
    }
    if gone:
        kept = {model_id: view for model_id, view in fleet.instances.items() if model_id not in gone}
        fleet = replace(fleet, instances=kept)
    return fleet, []


RULES = (
    complete_operations,
    end_overdue_requests,
    drop_stale,
    grant,
    load_demands,
    grant,
    evict_for_foreign_memory,
    stop,
    share_cores,
    remove_gone,
)
