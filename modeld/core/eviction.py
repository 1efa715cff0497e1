# SPDX-License-Identifier: GPL-3.0-only
"""Who must go, when a model needs room: the set of victims whose loss is expected to cost least.

Which models may go at all is said by the caller; this room only weighs them. docs/scheduling.md
explains the rule to operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from modeld.core.amounts import Amount, covers, is_nothing, minus, plus
from modeld.core.fleet import Fleet
from modeld.core.instance_view import InstanceView
from modeld.core.instant import Instant
from modeld.core.ledger import amount
from modeld.core.limits import Eviction

EXACT_CANDIDATES = 16
"""Up to so many candidates all sets are compared (at worst C(16, 8) = 12,870 of them); beyond, greedily."""

ASSUMED_BYTES_PER_S = 2**30
"""How fast a model loads that is loading for the first time."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A model that may go."""

    model_id: str
    frees: Amount
    """Bytes."""
    cost: float
    """Expected seconds of loading per second, if it goes: reload time x reuse rate."""
    last_used: Instant


_Weight = tuple[float, tuple[Instant, ...]]


def candidate(fleet: Fleet, view: InstanceView, now: Instant) -> Candidate:
    """Return what it would cost to lose a loaded model: its load time (s) x its reuse rate (1/s)."""
    load_s = view.load_s or assumed_load_s(view.reserved)
    return Candidate(
        model_id=view.model_id,
        frees=amount(fleet, view),
        cost=load_s * view.reuse_rate(now),
        last_used=view.last_used,
    )


def assumed_load_s(size: int) -> float:
    """Return what the first load of so many bytes is taken to need, seconds."""
    return size / ASSUMED_BYTES_PER_S


def choose(
    candidates: Iterable[Candidate], missing: Amount, eviction: Eviction = Eviction.COST
) -> tuple[str, ...] | None:
    """Choose who goes so that at least `missing` bytes become free, of the budget and of each device.

    Returns: their ids, least recently used first; None if all together are not enough.
    """
    if is_nothing(missing):
        return ()
    ordered = sorted(candidates, key=lambda one: (one.last_used, one.model_id))
    if not covers(_sum(ordered, missing), missing):
        return None
    if eviction is Eviction.LRU:
        chosen = _in_order(ordered, missing)
    elif len(ordered) <= EXACT_CANDIDATES:
        chosen = cheapest_set(ordered, missing)
    else:
        chosen = greedy_set(ordered, missing)
    return tuple(one.model_id for one in chosen)


def weight(victims: Iterable[Candidate]) -> _Weight:
    """Return what sets are compared by: cost, then the last uses, newest first.

    Of two sets of one cost the one goes whose newest member was used longer ago, then whose second
    newest was, and then the smaller one.
    """
    newest_first = sorted(victims, key=lambda one: (one.last_used, one.model_id), reverse=True)
    cost = 0.0
    for one in newest_first:
        cost += one.cost
    return cost, tuple(one.last_used for one in newest_first)


def cheapest_set(ordered: Sequence[Candidate], missing: Amount) -> list[Candidate]:
    """Return the set of least weight that frees enough, by branch and bound over all of them.

    `ordered` is by last use, oldest first; together they free enough. A set that frees enough without
    one of its members weighs more than without it, so only sets that need each member are looked at.
    """
    newest_first = list(reversed(ordered))
    rest = [(0,) * len(missing)] * (len(newest_first) + 1)  # rest[i]: bytes of those from i on
    for place in range(len(newest_first) - 1, -1, -1):
        rest[place] = plus(rest[place + 1], newest_first[place].frees)
    best: tuple[_Weight, list[Candidate]] | None = None
    # Each entry: next place to decide, bytes still missing, weight so far, members so far.
    open_sets: list[tuple[int, Amount, _Weight, list[Candidate]]] = [(0, missing, (0.0, ()), [])]
    while open_sets:
        place, lacking, so_far, members = open_sets.pop()
        if best is not None and so_far >= best[0]:
            continue
        if is_nothing(lacking):
            best = (so_far, members)
            continue
        if not covers(rest[place], lacking):
            continue
        one = newest_first[place]
        grown = (so_far[0] + one.cost, (*so_far[1], one.last_used))
        open_sets.append((place + 1, minus(lacking, one.frees), grown, [*members, one]))
        open_sets.append((place + 1, lacking, so_far, members))  # looked at first: without it
    if best is None:
        raise ValueError("the candidates together do not free enough")
    return list(reversed(best[1]))


def greedy_set(ordered: Sequence[Candidate], missing: Amount) -> list[Candidate]:
    """Return a cheap set that frees enough: the cheapest bytes first, then without who is not needed."""
    by_price = sorted(ordered, key=lambda one: one.cost / max(1, one.frees[0]))  # stable: ties by last use
    chosen = _in_order(by_price, missing)
    surplus = minus(_sum(chosen, missing), missing)
    for one in sorted(chosen, key=lambda one: (one.cost, one.last_used), reverse=True):
        if covers(surplus, one.frees):
            chosen.remove(one)
            surplus = minus(surplus, one.frees)
    return sorted(chosen, key=lambda one: (one.last_used, one.model_id))


def _in_order(ordered: Sequence[Candidate], missing: Amount) -> list[Candidate]:
    chosen: list[Candidate] = []
    for one in ordered:
        if is_nothing(missing):
            break
        chosen.append(one)
        missing = minus(missing, one.frees)
    return chosen


def _sum(candidates: Iterable[Candidate], like: Amount) -> Amount:
    total: Amount = (0,) * len(like)
    for one in candidates:
        total = plus(total, one.frees)
    return total
