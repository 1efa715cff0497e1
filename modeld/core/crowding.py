# SPDX-License-Identifier: GPL-3.0-only
"""Who gives way in a full queue: one who fills it keeps nobody else out.

The rule is that of longest queue drop, as in FQ-CoDel (RFC 8290, 4.1.2): the newest of the longest line goes.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from modeld.core.effects import Effect, Refuse
from modeld.core.eta import retry_after
from modeld.core.fleet import Fleet, Waiter
from modeld.core.instant import Instant
from modeld.core.order import urgency
from modeld.core.request import Stake
from modeld.errors import Problem, QueueFull


def without_fattest(
    fleet: Fleet, model_id: str, stake: Stake, full: Problem, now: Instant
) -> tuple[Fleet, list[Effect]]:
    """Make a place in a full queue, if another owner has more than his share of the places in it.

    His last request gives way: so one who fills the queue keeps nobody else out. `full` says which queue it
    is, that of the model or the common one.

    Returns: the fleet without that request, and its refusal; or the fleet as it is, and no effect.
    """
    common = "max_queue_total" in full.details
    places = [it for it in fleet.waiting if not it.aside and (common or it.model_id == model_id)]
    fattest = _fattest(places, stake)
    if fattest is None:
        return fleet, []
    victim = max((it for it in places if it.stake.owner == fattest), key=lambda it: urgency(it, now))
    has = sum(it.stake.owner == fattest for it in places)
    retry = retry_after(fleet, victim.model_id, now)
    problem = QueueFull(
        f"the queue is full, and this key has {has} of {len(places)} places in it, more than its share, so "
        f"this request gave way to another key's; try again in {retry} s",
        details={**full.details, "own": has},
        retry_after_s=retry,
    ).as_problem()
    waiting = tuple(it for it in fleet.waiting if it.ticket != victim.ticket)
    return replace(fleet, waiting=waiting), [Refuse(victim.ticket, problem)]


def _fattest(places: Collection[Waiter], stake: Stake) -> str | None:
    """Return the owner with the most places by weight, if he has more than the newcomer then would."""
    taken: dict[str, float] = {stake.owner: 1 / stake.weight}
    for it in places:
        taken[it.stake.owner] = taken.get(it.stake.owner, 0.0) + 1 / it.stake.weight
    owner = max(taken, key=lambda owner: (taken[owner], owner))
    return owner if taken[owner] > taken[stake.owner] else None
