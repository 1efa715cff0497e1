# SPDX-License-Identifier: GPL-3.0-only
"""For whom a model is loaded: the name of a key, where all who want it came with the same one. Pure."""

from __future__ import annotations

from modeld.core.fleet import Fleet


def wanted_by(fleet: Fleet, model_id: str) -> str:
    """Return the name of the one key whose requests and operations want a model; empty for several."""
    names = {waiter.stake.name for waiter in fleet.waiters(model_id)}
    names |= {one.key for one in fleet.loading_for(model_id)}
    return names.pop() if len(names) == 1 else ""
