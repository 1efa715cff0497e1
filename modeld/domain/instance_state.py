# SPDX-License-Identifier: GPL-3.0-only
"""The states of an instance, and the moves allowed between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
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
        return self in {State.LOADING, State.READY, State.DRAINING}


MOVES: Mapping[State, frozenset[State]] = {
    State.STOPPED: frozenset({State.QUEUED, State.LOADING}),
    State.QUEUED: frozenset({State.STOPPED, State.LOADING}),
    State.LOADING: frozenset({State.READY, State.ERROR, State.DRAINING, State.STOPPED}),
    State.READY: frozenset({State.DRAINING, State.ERROR}),
    State.DRAINING: frozenset({State.STOPPED, State.ERROR}),
    State.ERROR: frozenset({State.QUEUED, State.LOADING, State.STOPPED}),
}
"""From each state, the states it may turn into."""


def move(old: State, new: State) -> State:
    """Return `new` if the move is allowed; ValueError tells of a defect otherwise."""
    if new is not old and new not in MOVES[old]:
        raise ValueError(f"an instance cannot go from {old} to {new}")
    return new
