# SPDX-License-Identifier: GPL-3.0-only
"""Makes the claim of a demand that does not fit: at which place room is made for it, and who goes. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from modeld.core.amounts import Amount, minus
from modeld.core.claims import owed
from modeld.core.fleet import Claim, Fleet
from modeld.core.instant import Instant
from modeld.core.ledger import amounts, room_of
from modeld.core.lifecycle import State
from modeld.core.limits import Eviction
from modeld.core.models import ModelSpec
from modeld.core.needs import Need, goals
from modeld.core.order import drains_from, oldest_arrival
from modeld.core.room import SPARE_S, cost, drain_set, idle_set


def make_claim(fleet: Fleet, spec: ModelSpec, now: Instant) -> Claim | None:
    """Say who goes for a demand that does not fit: idle models, or busy ones if it waited long enough."""
    spare = minus(_room(fleet), owed(fleet, fleet.claims))
    missing = [(goal, minus(goal.amount, spare)) for goal in goals(fleet, spec)]
    ways = [(goal, lacks, idle_set(fleet, spec, lacks, now)) for goal, lacks in missing]
    made = _cheapest(fleet, ways, now)
    oldest = oldest_arrival(fleet, spec.id)
    if made is not None:
        goal, lacks, idle = made
        if oldest is not None and now < oldest + SPARE_S and _is_dear(fleet, spec, idle, lacks, now):
            return None
        return _claimed(spec, goal, idle, now, committed=True)
    drains = drains_from(fleet, spec.id)
    if drains is None or now < drains:
        return None
    for states in ({State.READY}, {State.READY, State.LOADING}):
        ways = [(goal, lacks, drain_set(fleet, spec, lacks, states, now)) for goal, lacks in missing]
        made = _cheapest(fleet, ways, now)
        if made is not None:
            goal, _, victims = made
            return _claimed(spec, goal, victims, now)
    return None


def _claimed(
    spec: ModelSpec, goal: Need, victims: tuple[str, ...], now: Instant, *, committed: bool = False
) -> Claim:
    return Claim(
        model_id=spec.id,
        victims=victims,
        since=now,
        widened_at=now,
        committed=committed,
        placement=goal.placement,
    )


def _room(fleet: Fleet) -> Amount:
    """Return what is free; where nothing is limited nobody asks."""
    return room_of(fleet) or amounts(fleet, ())


def _cheapest(
    fleet: Fleet, ways: Iterable[tuple[Need, Amount, tuple[str, ...] | None]], now: Instant
) -> tuple[Need, Amount, tuple[str, ...]] | None:
    """Return the way to make room that costs least, the first of those that cost the same."""
    able = [(goal, lacks, victims) for goal, lacks, victims in ways if victims is not None]
    return min(able, key=lambda way: cost(fleet, way[2], now), default=None)


def _is_dear(fleet: Fleet, spec: ModelSpec, idle: tuple[str, ...], missing: Amount, now: Instant) -> bool:
    """Whether busy models would cost less than half as much: they may be idle in a moment."""
    if fleet.limits.eviction is Eviction.LRU:
        return False
    cheapest = drain_set(fleet, spec, missing, {State.READY}, now)
    return cheapest is not None and cost(fleet, cheapest, now) < cost(fleet, idle, now) / 2
