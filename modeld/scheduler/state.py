# SPDX-License-Identifier: GPL-3.0-only
"""A frozen snapshot of the fleet, on which all decisions are made, and its memory ledger.

Bytes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum

import msgspec

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import Catalog
from modeld.domain.operation import Operation
from modeld.domain.request import Priority, Tenant
from modeld.errors import Problem
from modeld.memory.devices import DeviceLimit, combined
from modeld.memory.layer_placement import Placement

# ----------------------------------------------------------------------
# Points in time, as all decisions count them. Nobody in `core` asks a clock: they are given `now`.

Instant = float
"""Seconds on the scheduler's monotonic clock."""


# ----------------------------------------------------------------------
# A request inside, as all decisions see it. Frozen.


class PendingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request, whether it waits for a lease or has one (`Lease.request`)."""

    ticket: int
    model_id: str
    arrived: Instant = 0.0
    """Set when the scheduler takes it in."""
    waiting_since: Instant = 0.0
    """Where `max_wait` counts from: arrival, or the end of its model's load."""
    deadline: Instant | None = None
    priority: Priority = Priority.NORMAL
    keep_alive_s: float | None = None
    needs_no_slot: bool = False
    """It needs no slot, and waits for none: it is granted as soon as its model is ready."""
    tenant: Tenant = Tenant()
    deaths: int = 0
    """Engines that died while it was in a slot of theirs."""


# ----------------------------------------------------------------------
# One model's instance as the scheduler sees it: its state, who holds it, and what went wrong lately. Frozen.
#
# Bytes are bytes.

REUSE_WINDOW_S = 600.0
"""Requests count towards a model's reuse rate with weight 1/e after this long (docs/scheduling.md)."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was granted a place at an instance: it keeps the model in memory."""

    request: PendingRequest
    slot_since: Instant | None = None
    """When it got a slot; None while it waits in the instance's FIFO."""
    closed: bool = False
    """It was ended (client gone, time over); the instance has not let go of it yet."""

    @property
    def waits_for_slot(self) -> bool:
        """Whether it waits in the FIFO in front of its model's slots."""
        return self.slot_since is None and not self.closed and not self.request.needs_no_slot


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
    state: InstanceState = InstanceState.STOPPED
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
    """Until when each who asked for it has it stay, see `scheduler.keep_alive`; infinity has no end."""
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
        return sum(not lease.request.needs_no_slot for lease in self.leases)

    @property
    def live_leases(self) -> int:
        """Those of them whose request still wants something."""
        return sum(not lease.closed and not lease.request.needs_no_slot for lease in self.leases)

    @property
    def inflight(self) -> int:
        """Requests in a slot."""
        return sum(lease.slot_since is not None for lease in self.leases)

    @property
    def queued(self) -> int:
        """Live requests in the instance's FIFO, in front of its slots."""
        return sum(lease.waits_for_slot for lease in self.leases)


# ----------------------------------------------------------------------
# What the operator set for all decisions: memory, queues, times.


class Eviction(StrEnum):
    """By which rule idle models make room."""

    COST = "cost"
    """The set whose loss is expected to cost least."""
    LRU = "lru"
    """Least recently used first: what the simulator compares with."""


class SchedulerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator set. Times in seconds, memory in bytes."""

    budget: int | None = None
    """None is unlimited."""
    margin: int = 0
    max_queue_depth: int = 32
    max_queue_total: int = 256
    max_wait_s: float = 30.0
    share_tokens: int = 2048
    """What one who shares a queue may have in a turn, see `scheduler.fair_queue`."""
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


# ----------------------------------------------------------------------


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """Room that is being made for a model: nobody else gets these bytes."""

    model_id: str
    victims: tuple[str, ...]
    """Models that go for it. While they are not all idle, their gates are closed."""
    since: Instant
    widened_at: Instant
    """When `victims` were last chosen or added to."""
    committed: bool = False
    """The victims were told to stop."""
    placement: Placement | None = None
    """Where the room is, where there are GPUs."""


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the scheduler decides on."""

    limits: SchedulerLimits = SchedulerLimits()
    catalog: Catalog = Catalog()
    instances: Mapping[str, InstanceView] = {}
    waiting: tuple[PendingRequest, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    """The oldest first, which is the order in which they are met."""
    operations: tuple[Operation, ...] = ()
    """What operators asked for and is not done yet, the oldest first."""
    pins: Mapping[str, bool] = {}
    """Models that were pinned or let go while the daemon ran, whatever the config says."""
    devices: tuple[DeviceLimit, ...] = ()
    """What the devices leave to models; empty: they are not looked at."""
    reported_budget: int | None = None
    """The last budget that was told as a decision; None: that of the limits."""
    draining: bool = False
    loads: int = 0
    evictions: int = 0

    def instance(self, model_id: str) -> InstanceView:
        """Return the instance of a model; one that is stopped if it never had any."""
        return self.instances.get(model_id) or InstanceView(model_id=model_id)

    def with_instance(self, *views: InstanceView) -> Fleet:
        """Return this fleet with these instances in place of those of the same models."""
        if not views:
            return self
        return msgspec.structs.replace(
            self, instances={**self.instances, **{view.model_id: view for view in views}}
        )

    def waiters(self, model_id: str) -> tuple[PendingRequest, ...]:
        """Return those who wait for a model, in order of arrival."""
        return tuple(waiter for waiter in self.waiting if waiter.model_id == model_id)

    def loading_for(self, model_id: str) -> Iterator[Operation]:
        """Yield the operations that want a model to be loaded."""
        return (one for one in self.operations if one.wants_load and one.model_id == model_id)

    def departing_for(self, model_id: str) -> Operation | None:
        """Return the operation for which a model goes as soon as it is idle, if there is one."""
        return next((one for one in self.operations if model_id in one.departing), None)

    def is_wanted(self, model_id: str) -> bool:
        """Whether a model is to be loaded: for requests, for an operation, or as a preload."""
        return (
            any(waiter.model_id == model_id for waiter in self.waiting)
            or self.instance(model_id).wanted
            or any(self.loading_for(model_id))
        )

    def queue_len(self, model_id: str) -> int:
        """Requests for a model that have no slot, wherever they wait."""
        return self.waiting_for_slot(model_id) + self.instance(model_id).queued

    def waiting_for_slot(self, model_id: str) -> int:
        """Requests without a lease that will need a slot of a model."""
        return sum(waiter.model_id == model_id and not waiter.needs_no_slot for waiter in self.waiting)

    def needing_no_slot(self, model_id: str) -> int:
        """Live requests that need the model but no slot, with a lease and without."""
        waiting = sum(waiter.model_id == model_id and waiter.needs_no_slot for waiter in self.waiting)
        leases = self.instance(model_id).leases
        return waiting + sum(lease.request.needs_no_slot and not lease.closed for lease in leases)

    def queue_depth(self, model_id: str) -> int:
        """How many requests may wait for a model beyond those in its slots."""
        spec = self.catalog.models.get(model_id)
        own = None if spec is None else spec.max_queue_depth
        return self.limits.max_queue_depth if own is None else own

    def queued_models(self) -> frozenset[str]:
        """Return the models that somebody waits for."""
        waited_for = {waiter.model_id for waiter in self.waiting}
        return frozenset(waited_for | {view.model_id for view in self.instances.values() if view.queued})

    @property
    def waiting_total(self) -> int:
        """Requests of all models that have no slot."""
        return len(self.waiting) + sum(view.queued for view in self.instances.values())

    @property
    def held(self) -> int:
        """Bytes the ledger counts as taken: resident and reserved."""
        return sum(view.reserved for view in self.instances.values())

    def is_pinned(self, model_id: str) -> bool:
        """Whether the operator wants this model to stay."""
        spec = self.catalog.models.get(model_id)
        return spec is not None and spec.pinned

    @property
    def budget(self) -> int | None:
        """What models may take together now: the budget, or what others leave of it; None: unlimited."""
        budget = self.limits.budget
        if budget is None or not self.devices:
            return budget
        return min(budget, combined(self.devices, [device.ceiling for device in self.devices]))

    @property
    def free(self) -> int | None:
        """Bytes left in the budget of now, below 0 where others took some; None when it is unlimited."""
        budget = self.budget
        return None if budget is None else budget - self.limits.margin - self.held
