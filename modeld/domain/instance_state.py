# SPDX-License-Identifier: GPL-3.0-only
"""The states of an instance, and the transitions allowed between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class InstanceState(StrEnum):
    """Where an instance is in its life. The values are those of the native API."""

    STOPPED = "stopped"
    """No memory is held."""
    QUEUED = "queued"
    """Somebody waits for it, and it waits for room."""
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    """It gets no new requests, and stops when its last one ends."""
    ERROR = "error"
    """The last load failed or the engine died; no memory is held."""

    @property
    def holds_memory(self) -> bool:
        """Whether the ledger counts this instance."""
        return self in {InstanceState.LOADING, InstanceState.READY, InstanceState.DRAINING}


MOVES: Mapping[InstanceState, frozenset[InstanceState]] = {
    InstanceState.STOPPED: frozenset({InstanceState.QUEUED, InstanceState.LOADING}),
    InstanceState.QUEUED: frozenset({InstanceState.STOPPED, InstanceState.LOADING}),
    InstanceState.LOADING: frozenset(
        {InstanceState.READY, InstanceState.ERROR, InstanceState.DRAINING, InstanceState.STOPPED}
    ),
    InstanceState.READY: frozenset({InstanceState.DRAINING, InstanceState.ERROR}),
    InstanceState.DRAINING: frozenset({InstanceState.STOPPED, InstanceState.ERROR}),
    InstanceState.ERROR: frozenset({InstanceState.QUEUED, InstanceState.LOADING, InstanceState.STOPPED}),
}
"""From each state, the states it may turn into."""


def transition(old: InstanceState, new: InstanceState) -> InstanceState:
    """Return `new` if the move is allowed; ValueError tells of a defect otherwise."""
    if new is not old and new not in MOVES[old]:
        raise ValueError(f"an instance cannot go from {old} to {new}")
    return new
