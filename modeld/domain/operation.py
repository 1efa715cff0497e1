# SPDX-License-Identifier: GPL-3.0-only
"""Operations: what an operator asked for, and their progress.

`Operation` is the scheduler's own record of one that runs; `OperationStatus` is what the API tells of it.
`scheduler.operations` begins and ends them, docs/operations.md describes them to operators.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class OperationKind(StrEnum):
    """What is asked for."""

    LOAD = "load"
    UNLOAD = "unload"
    SWITCH = "switch"
    """Load one model, and unload all others that are not pinned."""


class OperationState(StrEnum):
    """How an operation stands. All but the first are final."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """It was given up, or a later one asked for the opposite."""


class Phase(StrEnum):
    """What an operation waits for."""

    QUEUED = "queued"
    """Room in memory, or its turn."""
    EVICTING = "evicting"
    """Models that make room for it stop."""
    LOADING = "loading"
    DRAINING = "draining"
    """Requests that hold a model which has to go."""
    STOPPING = "stopping"
    """A model that has to go gives its memory back."""
    DONE = "done"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One that runs."""

    id: str
    kind: OperationKind
    model_id: str
    since: float
    """When it was asked for, on the scheduler's clock."""
    key: str = ""
    """Name of the key of who asked, where keys are in force."""
    wants_load: bool = False
    """Its model is still to be loaded: a demand alongside those of requests."""
    keep_alive_s: float | None = None
    """How long its model is kept, once loaded, without a request; negative: for ever; None: its `ttl`."""
    departing: tuple[str, ...] = ()
    """Models that go as soon as no request holds them; they take no new ones."""
    departing_since: float = 0.0
    departing_total: int = 0
    """How many they were to begin with."""
    evicted: tuple[str, ...] = ()
    """Other models that went for it."""


class OperationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of an operation. Field names are the JSON keys of the native API."""

    id: str
    kind: OperationKind
    model: str
    """Id of its model."""
    state: OperationState
    phase: Phase
    progress: float
    """0 to 1: of a load, how far it is; of an unload, how many of the models are gone."""
    reason: str
    """What it waits for, or how it ended, as a sentence."""
    evicted: tuple[str, ...] = ()
    """Other models that went for it."""
    created_unix: float
    ended_unix: float | None = None
    error: str | None = None
    """Why it failed."""
    code: int | None = None
    """The HTTP status of that failure."""
    key: str | None = None
    """Name of the key of who asked for it; null where no keys are in force."""
