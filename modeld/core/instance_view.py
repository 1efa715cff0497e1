# SPDX-License-Identifier: GPL-3.0-only
"""One model's instance as the scheduler sees it: its state, who holds it, and what went wrong lately. Frozen.

Bytes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from modeld.core.instant import Instant
from modeld.core.lifecycle import State
from modeld.core.spread import Placement
from modeld.core.standing import Standing
from modeld.errors import Problem

REUSE_WINDOW_S = 600.0
"""Requests count towards a model's reuse rate with weight 1/e after this long (docs/scheduling.md)."""


class Lease(Standing, frozen=True, kw_only=True):
    """A request that was granted a place at an instance: it keeps the model in memory."""

    slot_since: Instant | None = None
    """When it got a slot; None while it waits in the instance's FIFO."""
    closed: bool = False
    """It was ended (client gone, time over); the instance has not let go of it yet."""

    @property
    def waits_for_slot(self) -> bool:
        """Whether it waits in the FIFO in front of its model's slots."""
        return self.slot_since is None and not self.closed and not self.aside


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """Where the turns of those stand who share a model's queue. Empty while at most one of them waits."""

    order: tuple[str, ...] = ()
    """The owners; it is the first one's turn."""
    credit: Mapping[str, float] = {}
    """Tokens that each may still have; below 0 is what it had too many."""
    begun: bool = False
    """The first one has had its quantum for this turn."""


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong with a model lately."""

    recent: tuple[Instant, ...] = ()
    """Failures within the breaker's window."""
    in_a_row: int = 0
    retry_at: Instant = 0.0
    while_loading: bool = False
    problem: Problem | None = None
    breaker: bool = False
    """They opened the breaker, and no load has succeeded since."""


class InstanceView(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler knows of one model's instance."""

    model_id: str
    state: State = State.STOPPED
    reserved: int = 0
    """Bytes the ledger holds for it; 0 when no memory is held."""
    placement: Placement | None = None
    """Where it is, where there are GPUs."""
    slots: int = 1
    leases: tuple[Lease, ...] = ()
    last_used: Instant = 0.0
    keep_until: Instant | None = None
    """When it is unloaded if still idle; None: never by time."""
    stays: Mapping[str, Instant] = {}
    """Until when each who asked for it has it stay, see `core.staying`; infinity has no end."""
    load_started: Instant = 0.0
    ready_at: Instant = 0.0
    """When its last load ended: its turn and its residency begin there."""
    load_s: float = 0.0
    """What its last load took; 0 before the first."""
    demand: float = 0.0
    """Requests so far, each weighing less by 1/e for every `REUSE_WINDOW_S` at `demand_at`."""
    demand_at: Instant = 0.0
    service_s: float | None = None
    """Decaying average of the seconds a request holds a slot."""
    threads: int = 0
    stopping: bool = False
    """The order to stop was given; memory is still held."""
    stale: bool = False
    """Its file or its options have changed: it serves on until it is idle, then it goes."""
    wanted: bool = False
    """To be loaded although nobody waits (preload)."""
    shares: Shares = Shares()
    failures: Failures = Failures()
    restarts: int = 0
    stuck: Problem | None = None
    """It hangs and cannot be killed: its memory is held until it comes back, or the daemon ends."""

    def reuse_rate(self, now: Instant) -> float:
        """Return how often it is asked for lately, in requests per second."""
        return self.demand * math.exp((self.demand_at - now) / REUSE_WINDOW_S) / REUSE_WINDOW_S

    @property
    def idle(self) -> bool:
        """Whether no request holds it."""
        return not self.leases

    @property
    def slot_leases(self) -> int:
        """Leases that take a slot or a place in front of the slots."""
        return sum(not lease.aside for lease in self.leases)

    @property
    def live_leases(self) -> int:
        """Those of them whose request still wants something."""
        return sum(not lease.closed and not lease.aside for lease in self.leases)

    @property
    def inflight(self) -> int:
        """Requests in a slot."""
        return sum(lease.slot_since is not None for lease in self.leases)

    @property
    def queued(self) -> int:
        """Live requests in the instance's FIFO, in front of its slots."""
        return sum(lease.waits_for_slot for lease in self.leases)
