# SPDX-License-Identifier: GPL-3.0-only
"""What the operator set for all decisions: memory, queues, times."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Eviction(StrEnum):
    """By which rule idle models make room."""

    COST = "cost"
    """The set whose loss is expected to cost least."""
    LRU = "lru"
    """Least recently used first: what the simulator compares with."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator set. Times in seconds, memory in bytes."""

    budget: int | None = None
    """None is unlimited."""
    margin: int = 0
    max_queue_depth: int = 32
    max_queue_total: int = 256
    max_wait_s: float = 30.0
    share_tokens: int = 2048
    """What one who shares a queue may have in a turn, see `core.share`."""
    max_wait_before_drain_s: float = 2.0
    """A request that waits longer for room has busy models drained."""
    quantum_s: float = 2.0
    """A model serves at least so long before it is drained for another."""
    backlog_time_s: float = 10.0
    """A model that is drained goes on with requests that came before, for at most so long."""
    min_residency_s: float = 0.0
    """An idle model stays at least so long before it makes room."""
    evict_timeout_s: float = 10.0
    """A drain that takes longer after that is widened, or cut."""
    cut_streams: bool = False
    infer_timeout_s: float | None = None
    eviction: Eviction = Eviction.COST
    cores: int = 1
