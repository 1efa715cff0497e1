# SPDX-License-Identifier: GPL-3.0-only
"""Decide which preloads the daemon still has to load before it is ready. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from modeld.core.fleet import Fleet
from modeld.core.lifecycle import State
from modeld.core.placement import fits_not_now


def preloads_under_way(fleet: Fleet, models: Iterable[str]) -> frozenset[str]:
    """Return those of `models` whose first load runs, or begins without anybody's help.

    A preload is no longer under way once it is loaded, withdrawn or failed, or waits for memory that others
    hold. Nothing says when such a wait ends, and the daemon answers for its other models meanwhile.
    """
    return frozenset(model_id for model_id in models if _is_under_way(fleet, model_id))


def _is_under_way(fleet: Fleet, model_id: str) -> bool:
    spec = fleet.catalog.models.get(model_id)
    view = fleet.instance(model_id)
    if spec is None or not view.wanted or view.state is State.QUEUED:
        return False
    # A first failure that is tried again at once is not one: neither it nor a death sets `while_loading`.
    return not view.failures.while_loading and fits_not_now(fleet, spec) is None
