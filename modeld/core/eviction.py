# SPDX-License-Identifier: GPL-3.0-only
"""Who must go, when a model needs room."""

from __future__ import annotations

import msgspec

from modeld.core.fleet import Fleet
from modeld.core.lifecycle import State
from modeld.core.placement import is_pinned


class Victims(msgspec.Struct, frozen=True):
    """Stop these, in this order; an empty tuple says that enough is free or about to be."""

    model_ids: tuple[str, ...]


class NoRoom(msgspec.Struct, frozen=True):
    """Not enough can be freed now: what these hold is in use."""

    holders: tuple[str, ...]


def choose_victims(fleet: Fleet, need: int) -> Victims | NoRoom:
    """Choose the idle models to stop so that `need` bytes become free.

    (1) What is free, or is being given back by models that stop already, counts first.
    (2) Candidates are READY, idle, not pinned, and nobody waits for them.
    (3) Least recently used first, until it is enough; never any if all together are not enough.
    """
    free = fleet.free
    if free is None:
        return Victims(())
    # (1)
    views = fleet.instances.values()
    missing = need - free - sum(view.reserved for view in views if view.stopping)
    if missing <= 0:
        return Victims(())
    # (2)
    wanted = {waiter.model_id for waiter in fleet.waiting}
    candidates = sorted(
        (
            view
            for view in views
            if view.state is State.READY
            and view.idle
            and view.model_id not in wanted
            and not is_pinned(fleet, view.model_id)
        ),
        key=lambda view: (view.last_used, view.model_id),
    )
    # (3)
    chosen: list[str] = []
    for view in candidates:
        chosen.append(view.model_id)
        missing -= view.reserved
        if missing <= 0:
            return Victims(tuple(chosen))
    return NoRoom(tuple(sorted(view.model_id for view in views if view.reserved)))
