# SPDX-License-Identifier: GPL-3.0-only
"""Values that `/status` shows. Field names are the JSON keys of the native API.

`*_mb` is MiB, `*_unix` seconds since the epoch, `*_ms` milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from modeld.domain.instance_state import InstanceState


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the scheduler decided, and why."""

    at_unix: float
    action: str
    """load, ready, evict, unload, refuse, load_failed, died, stuck, ..."""
    model_id: str
    reason: str
    numbers: Mapping[str, float] = {}


class InstanceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model that is, or was, or waits to be loaded."""

    model_id: str
    state: InstanceState
    last_used_unix: float
    est_vram_mb: float
    queue_len: int
    """Requests that wait for a slot."""
    inflight: int
    """Requests in a slot."""
    eta_ms: float | None = None
    """Until the last of those that wait now has a slot, by what was measured; None: nobody waits, or
    nothing was measured yet."""
    max_queue_depth: int
    pid: int | None = None
    """Of its worker process; None where it runs in a thread."""
    slots: int = 0
    busy_slots: int = 0
    estimate_mb: float = 0.0
    """Of `est_vram_mb`, what was estimated before anything was learned."""
    estimate_source: str = "formula"
    """`probe` (a dry run of llama.cpp) or `formula`."""
    devices_mb: Mapping[str, float] = {}
    """Of `est_vram_mb`, what is on which device, where there are GPUs."""
    placement: str | None = None
    """Why it is there; None: there are no GPUs, or it is not loaded."""
    learned_ratio: float = 1.0
    """`est_vram_mb` of the next load is so many times the estimate."""
    measured_mb: float | None = None
    """Proportional set size of its worker process, seen within the last 15 s of work."""
    pinned: bool = False
    ttl_s: float | None = None
    keep_until_unix: float | None = None
    """When it is unloaded if it is idle then, never before now; None: never by time, as a pinned one."""
    load_progress: float | None = None
    load_ms: float | None = None
    tokens_per_second: float = 0.0
    """Over all slots, of those of the last ten seconds in which there were tokens."""
    restarts: int = 0
    last_error: str | None = None
    context_length: int = 0
    kv_cells: int = 0
    """Shared by its slots."""
    sizing: str | None = None
    """Why `auto` chose so many cells and slots; None where the config names them."""
    threads: int = 0
    silent_s: float | None = None
    """Seconds since its last step while requests hold slots; None when there are none."""


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one device."""

    name: str
    total_mb: float
    """0: the system does not tell."""
    free_mb: float
    kind: str = "cpu"
    """`cpu`, `gpu`, `igpu`, `accel` or `other`."""
    description: str = ""
    ours_mb: float = 0.0
    """What models hold there; of a GPU, what the ledger has for it."""
    foreign_mb: float = 0.0
    """What others hold: other processes, and the kernel."""
    effective_mb: float | None = None
    """What all models together may hold there for now; None: it is not watched."""


class EventsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's events: how many there were, and whether they are written down."""

    run: str = ""
    """Name of this run of the daemon, the first part of each event's id."""
    recorded: Mapping[str, int] = {}
    """By kind."""
    target: str | None = None
    """Where they are written; None: `events_enable` is off."""
    written: int = 0
    dropped: int = 0
    """Not written, because there was no room, nobody read, or the disk was too slow."""
    problem: str | None = None
    """Why they cannot be written right now."""
    readers: int = 0
    """Of `GET /events`."""
    missed: int = 0
    """Events that came faster than readers of `GET /events` took them, over all readers."""


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole daemon at one moment."""

    state: str
    """loading (no instance became ready yet), ready, draining."""
    version: str
    node_id: str
    server_time_unix: float
    uptime_seconds: float
    instances: tuple[InstanceStatus, ...]
    budget_mb: float
    """0 is unlimited."""
    effective_budget_mb: float | None = None
    """Of the budget, what can be given out while other processes hold memory; None: it is unlimited."""
    shortage: str | None = None
    """Why that is less than the budget: a sentence; None: it is all of it."""
    used_est_mb: float
    reserved_mb: float
    """Of `used_est_mb`, what belongs to loads under way."""
    unaccounted_mb: float
    margin_mb: float
    error: str | None = None
    last_error: str | None = None
    evictions_total: int = 0
    loads_total: int = 0
    warmups_in_progress: int = 0
    draining_count: int = 0
    queued_total: int = 0
    inflight_total: int = 0
    devices: tuple[DeviceStatus, ...] = ()
    decisions: tuple[Decision, ...] = ()
    """The last 50, newest last."""
    keys: int | None = None
    """Keys in force; None: no key is asked for."""
    warnings: tuple[str, ...] = ()
    """What the operator should mend: sentences. An address that strangers reach without a key is one."""
    events: EventsStatus = EventsStatus()
