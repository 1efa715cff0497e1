# SPDX-License-Identifier: GPL-3.0-only
"""The scheduler's brain: `step(fleet, input, now) -> (fleet, effects)`, pure.

First `scheduler.apply_input` writes the input down, then all conclusions are drawn from the new state:

    (0) operations that have what they asked for end (`scheduler.operations`)
    (1) requests whose time is over are ended (`scheduler.admission`)
    (2) instances that are ready take waiters into their FIFO, as far as their gate lets them
    (`scheduler.draining`)
    (3) models somebody waits for are loaded, and others make room (`scheduler.loading`); gates that open by
        it let waiters in
    (4) while other processes hold so much that loaded models are too large for what is left, idle ones
        give way (`scheduler.memory_pressure`)
    (5) instances that drain, that are out of date, idle too long or to go for an operator are stopped,
        once they are idle
    (6) the cores are shared out among the instances that decode
    (7) models that are gone are forgotten
"""

from __future__ import annotations

from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState, transition
from modeld.domain.operation import Operation
from modeld.scheduler.admission import end_overdue_requests
from modeld.scheduler.apply_input import apply_input
from modeld.scheduler.capacity import share_cores
from modeld.scheduler.deadlines import idle_deadline
from modeld.scheduler.draining import gate_admits
from modeld.scheduler.effects import ChangeThreads, Effect, Grant, Outcome, RecordDecision, StopInstance
from modeld.scheduler.fair_queue import fair_turns, may_queue, with_turns_begun
from modeld.scheduler.inputs import Input, SlotTaken
from modeld.scheduler.loading import load_demands
from modeld.scheduler.memory_pressure import evict_for_foreign_memory
from modeld.scheduler.operations import complete_operations
from modeld.scheduler.queue_order import waiting_by_urgency
from modeld.scheduler.reservations import without_stale
from modeld.scheduler.state import Fleet, InstanceView, Instant, Lease, Waiter


def step(fleet: Fleet, event: Input, now: Instant) -> Outcome:
    """Take in one input and decide everything that follows from it.

    Returns: the fleet after it, and the effects to perform, in their order.
    Raises: ValueError for an input that contradicts the state, which is a defect.
    """
    fleet, effects = apply_input(fleet, event, now)
    if isinstance(event, SlotTaken):  # It only says when: no rule looks at that. What is due is for `Tick`.
        return fleet, effects
    for rule in _RULES:
        fleet, more = rule(fleet, now)
        effects += more
    return fleet, effects


def _tidy(fleet: Fleet, now: Instant) -> Outcome:
    return without_stale(fleet, now), []


def _grant(fleet: Fleet, now: Instant) -> Outcome:
    """(2) Fill each ready instance's slots and its FIFO, which has room for one round of slots.

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


def _lease(waiter: Waiter) -> Lease:
    return Lease(
        ticket=waiter.ticket,
        arrived=waiter.arrived,
        waiting_since=waiter.waiting_since,
        deadline=waiter.deadline,
        priority=waiter.priority,
        keep_alive_s=waiter.keep_alive_s,
        needs_no_slot=waiter.needs_no_slot,
        tenant=waiter.tenant,
        deaths=waiter.deaths,
    )


def _stop(fleet: Fleet, now: Instant) -> Outcome:
    """(5) Stop what is idle and drains, has a newer file, or was idle for its time to live."""
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


def _share_cores(fleet: Fleet, _now: Instant) -> Outcome:
    """(6) Share the cores among the instances that decode; idle ones keep what they had."""
    effects: list[Effect] = []
    busy = sum(not view.idle for view in fleet.instances.values())
    for view in fleet.instances.values():
        spec = fleet.catalog.models.get(view.model_id)
        if view.state is not InstanceState.READY or view.idle or spec is None:
            continue
        threads = share_cores(fleet.limits.cores, spec.options.threads, busy)
        if threads != view.threads:
            fleet = fleet.with_instance(replace(view, threads=threads))
            effects.append(ChangeThreads(view.model_id, threads))
    return fleet, effects


def _remove_gone(fleet: Fleet, _now: Instant) -> Outcome:
    """(7) Forget models that are gone from the catalogue, once they hold nothing."""
    gone = {
        model_id
        for model_id, view in fleet.instances.items()
        if model_id not in fleet.catalog.models and not view.state.holds_memory
    }
    if gone:
        kept = {model_id: view for model_id, view in fleet.instances.items() if model_id not in gone}
        fleet = replace(fleet, instances=kept)
    return fleet, []


_RULES = (
    complete_operations,
    end_overdue_requests,
    _tidy,
    _grant,
    load_demands,
    _grant,
    evict_for_foreign_memory,
    _stop,
    _share_cores,
    _remove_gone,
)
