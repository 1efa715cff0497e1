# SPDX-License-Identifier: GPL-3.0-only
"""How far an operation is, and what it waits for: read off the fleet whenever somebody asks."""

from __future__ import annotations

import msgspec

from modeld.core.fleet import Fleet
from modeld.core.instant import Instant
from modeld.core.lifecycle import State
from modeld.core.operations import Operation, Phase


class Stage(msgspec.Struct, frozen=True):
    """Where an operation is, and a sentence on it."""

    phase: Phase
    reason: str
    progress: float
    """0 to 1, without the progress of a load that is under way, which its instance knows."""


def stage_of(fleet: Fleet, one: Operation, now: Instant) -> Stage:
    """Say what a running operation waits for."""
    return _of_load(fleet, one, now) if one.wants_load else _of_leaving(fleet, one)


def _of_load(fleet: Fleet, one: Operation, now: Instant) -> Stage:
    view = fleet.instance(one.model_id)
    claim = next((claim for claim in fleet.claims if claim.model_id == one.model_id), None)
    match view.state:
        case State.LOADING:
            return Stage(Phase.LOADING, f"it is being loaded, for {now - view.load_started:.1f} s", 0.0)
        case State.DRAINING:
            return Stage(Phase.STOPPING, "it is being unloaded, and is loaded again after that", 0.0)
        case State.ERROR if view.failures.retry_at > now:
            wait = view.failures.retry_at - now
            return Stage(Phase.QUEUED, f"its engine died; it is tried again in {wait:.1f} s", 0.0)
        case _ if claim is None:
            return Stage(Phase.QUEUED, "it waits for room in memory", 0.0)
        case _ if claim.committed:
            return Stage(Phase.EVICTING, f"{', '.join(claim.victims)} makes room for it", 0.0)
        case _:
            names = ", ".join(claim.victims)
            return Stage(Phase.DRAINING, f"{names} makes room for it as soon as no request holds it", 0.0)


def _of_leaving(fleet: Fleet, one: Operation) -> Stage:
    gone = one.leaving_total - len(one.leaving)
    progress = gone / one.leaving_total if one.leaving_total else 0.0
    busy = [view for view in map(fleet.instance, one.leaving) if not view.idle]
    if busy:
        requests = sum(len(view.leases) for view in busy)
        names = ", ".join(view.model_id for view in busy)
        hold = "1 request still holds" if requests == 1 else f"{requests} requests still hold"
        return Stage(Phase.DRAINING, f"{hold} {names}", progress)
    loading = [view.model_id for view in map(fleet.instance, one.leaving) if view.state is State.LOADING]
    if loading:
        reason = f"{', '.join(loading)} is being loaded for requests, and goes after them"
        return Stage(Phase.DRAINING, reason, progress)
    return Stage(Phase.STOPPING, f"{', '.join(one.leaving)} gives its memory back", progress)
