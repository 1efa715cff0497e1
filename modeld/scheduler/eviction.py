# SPDX-License-Identifier: GPL-3.0-only
"""Choose victims: the set of models whose loss is expected to cost least.

Which models may go at all is said by the caller; this room only weighs them. docs/scheduling.md
explains the rule to operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import ModelSpec
from modeld.memory.devices import Amount, add, fits_in, is_zero, subtract
from modeld.scheduler.capacity import bytes_of, device_bytes
from modeld.scheduler.reservations import victims_of_others
from modeld.scheduler.state import Eviction, Fleet, InstanceView, Instant

EXACT_CANDIDATES = 16
"""Up to so many candidates all sets are compared (at worst C(16, 8) = 12,870 of them); beyond, greedily."""

ASSUMED_BYTES_PER_S = 2**30
"""How fast a model loads that is loading for the first time."""


class EvictionCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """A model that may go."""

    model_id: str
    frees: Amount
    """Bytes."""
    cost: float
    """Expected seconds of loading per second, if it goes: reload time x reuse rate."""
    last_used: Instant


_Weight = tuple[float, tuple[Instant, ...]]


def eviction_candidate(fleet: Fleet, view: InstanceView, now: Instant) -> EvictionCandidate:
    """Return what it would cost to lose a loaded model: its load time (s) x its reuse rate (1/s)."""
    load_s = view.load_s or assumed_load_s(view.reserved)
    return EvictionCandidate(
        model_id=view.model_id,
        frees=bytes_of(fleet, view),
        cost=load_s * view.reuse_rate(now),
        last_used=view.last_used,
    )


def assumed_load_s(size: int) -> float:
    """Return what the first load of so many bytes is taken to need, seconds."""
    return size / ASSUMED_BYTES_PER_S


def choose_victims(
    candidates: Iterable[EvictionCandidate], missing: Amount, eviction: Eviction = Eviction.COST
) -> tuple[str, ...] | None:
    """Choose who goes so that at least `missing` bytes become free, of the budget and of each device.

    Returns: their ids, least recently used first; None if all together are not enough.
    """
    if is_zero(missing):
        return ()
    ordered = sorted(candidates, key=lambda one: (one.last_used, one.model_id))
    if not fits_in(_sum(ordered, missing), missing):
        return None
    if eviction is Eviction.LRU:
        chosen = _in_order(ordered, missing)
    elif len(ordered) <= EXACT_CANDIDATES:
        chosen = cheapest_victims(ordered, missing)
    else:
        chosen = greedy_victims(ordered, missing)
    return tuple(one.model_id for one in chosen)


def eviction_cost_rate(victims: Iterable[EvictionCandidate]) -> _Weight:
    """Return what sets are compared by: cost, then the last uses, newest first.

    Of two sets of one cost the one goes whose newest member was used longer ago, then whose second
    newest was, and then the smaller one.
    """
    newest_first = sorted(victims, key=lambda one: (one.last_used, one.model_id), reverse=True)
    cost = 0.0
    for one in newest_first:
        cost += one.cost
    return cost, tuple(one.last_used for one in newest_first)


def cheapest_victims(ordered: Sequence[EvictionCandidate], missing: Amount) -> list[EvictionCandidate]:
    """Return the set of least weight that frees enough, by branch and bound over all of them.

    `ordered` is by last use, oldest first; together they free enough. A set that frees enough without
    one of its members weighs more than without it, so only sets that need each member are looked at.
    """
    newest_first = list(reversed(ordered))
    rest = [(0,) * len(missing)] * (len(newest_first) + 1)  # rest[i]: bytes of those from i on
    for place in range(len(newest_first) - 1, -1, -1):
        rest[place] = add(rest[place + 1], newest_first[place].frees)
    best: tuple[_Weight, list[EvictionCandidate]] | None = None
    # Each entry: next place to decide, bytes still missing, weight so far, members so far.
    open_sets: list[tuple[int, Amount, _Weight, list[EvictionCandidate]]] = [(0, missing, (0.0, ()), [])]
    while open_sets:
        place, lacking, so_far, members = open_sets.pop()
        if best is not None and so_far >= best[0]:
            continue
        if is_zero(lacking):
            best = (so_far, members)
            continue
        if not fits_in(rest[place], lacking):
            continue
        one = newest_first[place]
        grown = (so_far[0] + one.cost, (*so_far[1], one.last_used))
        open_sets.append((place + 1, subtract(lacking, one.frees), grown, [*members, one]))
        open_sets.append((place + 1, lacking, so_far, members))  # looked at first: without it
    if best is None:
        raise ValueError("the candidates together do not free enough")
    return list(reversed(best[1]))


def greedy_victims(ordered: Sequence[EvictionCandidate], missing: Amount) -> list[EvictionCandidate]:
    """Return a cheap set that frees enough: the cheapest bytes first, then without who is not needed."""
    by_price = sorted(ordered, key=lambda one: one.cost / max(1, one.frees[0]))  # stable: ties by last use
    chosen = _in_order(by_price, missing)
    surplus = subtract(_sum(chosen, missing), missing)
    for one in sorted(chosen, key=lambda one: (one.cost, one.last_used), reverse=True):
        if fits_in(surplus, one.frees):
            chosen.remove(one)
            surplus = subtract(surplus, one.frees)
    return sorted(chosen, key=lambda one: (one.last_used, one.model_id))


def _in_order(ordered: Sequence[EvictionCandidate], missing: Amount) -> list[EvictionCandidate]:
    chosen: list[EvictionCandidate] = []
    for one in ordered:
        if is_zero(missing):
            break
        chosen.append(one)
        missing = subtract(missing, one.frees)
    return chosen


def _sum(candidates: Iterable[EvictionCandidate], like: Amount) -> Amount:
    total: Amount = (0,) * len(like)
    for one in candidates:
        total = add(total, one.frees)
    return total


# ----------------------------------------------------------------------
# Which loaded models may make room for another one, now or once they are idle.

SPARE_S = 1.0
"""A request waits at most so long for a busy model that costs less than half as much as the idle ones.

In the simulator (docs/scheduling.md) this saves up to 4 % of the loads and adds nothing to the worst
wait; 2 s save no more.
"""


def cost(fleet: Fleet, victims: Iterable[str], now: Instant) -> float:
    """Return what the loss of these models is expected to cost, seconds of loading per second."""
    return sum(eviction_candidate(fleet, fleet.instance(victim), now).cost for victim in victims)


def idle_victims(fleet: Fleet, spec: ModelSpec, missing: Amount, now: Instant) -> tuple[str, ...] | None:
    """Choose idle models that may go at once; those that stop already count first."""
    others = victims_of_others(fleet, spec.id)
    stopping = [
        view
        for view in fleet.instances.values()
        if view.stopping and view.stuck is None and view.model_id not in others
    ]
    candidates = (
        eviction_candidate(fleet, view, now)
        for view in evictable(fleet, others, {InstanceState.READY})
        if view.idle and now >= view.ready_at + fleet.limits.min_residency_s
    )
    return _beside(stopping, candidates, missing, fleet)


def busy_victims(
    fleet: Fleet, spec: ModelSpec, missing: Amount, states: set[InstanceState], now: Instant
) -> tuple[str, ...] | None:
    """Choose models that go once they are idle; those that drain already count first."""
    others = victims_of_others(fleet, spec.id)
    views = fleet.instances.values()
    draining = [
        view
        for view in views
        if view.state is InstanceState.DRAINING and view.stuck is None and view.model_id not in others
    ]
    candidates = (eviction_candidate(fleet, view, now) for view in evictable(fleet, others, states))
    return _beside(draining, candidates, missing, fleet)


def _beside(
    leaving: list[InstanceView], candidates: Iterable[EvictionCandidate], missing: Amount, fleet: Fleet
) -> tuple[str, ...] | None:
    missing = subtract(missing, device_bytes(fleet, leaving))
    chosen = choose_victims(candidates, missing, fleet.limits.eviction)
    return None if chosen is None else (*(view.model_id for view in leaving), *chosen)


def evictable(fleet: Fleet, others: frozenset[str], states: set[InstanceState]) -> Iterator[InstanceView]:
    """Yield the models in one of these states that may be asked to go: not pinned, not going for others."""
    for view in fleet.instances.values():
        if view.state in states and view.model_id not in others and not fleet.is_pinned(view.model_id):
            yield view
