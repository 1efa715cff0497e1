# SPDX-License-Identifier: GPL-3.0-only
"""Ends requests whose own time is over, or that waited for others too long: the first rule of a step."""

from __future__ import annotations

from msgspec.structs import replace

from modeld.core.effects import Cut, CutReason, Effect, Refuse
from modeld.core.eta import retry_after
from modeld.core.fleet import Fleet, Waiter
from modeld.core.gates import is_closed, is_leaving
from modeld.core.instant import Instant
from modeld.core.leases import close
from modeld.core.lifecycle import State
from modeld.core.outcome import Outcome
from modeld.core.standing import Standing
from modeld.errors import DeadlineExceeded, Problem, WaitedTooLong


def end_overdue(fleet: Fleet, now: Instant) -> Outcome:
    """End the requests whose own deadline passed, or that waited for others for too long."""
    effects: list[Effect] = []
    staying: list[Waiter] = []
    for waiter in fleet.waiting:
        loading = fleet.instance(waiter.model_id).state is State.LOADING
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
            if lease.deadline is not None and now >= lease.deadline:
                problem = _deadline_passed(lease, now)
                effects.append(Cut(lease.ticket, CutReason.TIMEOUT, problem))
            elif lease.waits_for_slot and now >= lease.waiting_since + fleet.limits.max_wait_s:
                problem = _waited_too_long(fleet, view.model_id, now)
                effects.append(Cut(lease.ticket, CutReason.WAITED, problem))
            else:
                continue
            fleet = close(fleet, lease.ticket)
    return fleet, effects


def _deadline_passed(request: Standing, now: Instant) -> Problem:
    return DeadlineExceeded(
        f"no token within {now - request.arrived:.1f} s, the time this request was given; "
        "give it a longer timeout, or try when the queue is shorter"
    ).as_problem()


def _waited_too_long(fleet: Fleet, model_id: str, now: Instant) -> Problem:
    view = fleet.instance(model_id)
    retry = retry_after(fleet, model_id, now)
    if view.state is State.DRAINING or is_leaving(fleet, view, now):
        why = f"model {model_id} is being unloaded"
    elif is_closed(fleet, view, now):
        others = ", ".join(claim.model_id for claim in fleet.claims if model_id in claim.victims)
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
