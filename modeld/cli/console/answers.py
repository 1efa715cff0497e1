# SPDX-License-Identifier: GPL-3.0-only
"""The daemon's answers, as far as people are shown them.

Every key has a default, so that an older or newer daemon can be read. `docs/api.md` tells what
they mean: `*_mb` is MiB, `*_unix` seconds since the epoch, `*_ms` milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A model in `/status`."""

    model_id: str
    state: str = "stopped"
    last_used_unix: float = 0.0
    est_vram_mb: float = 0.0
    measured_mb: float | None = None
    queue_len: int = 0
    inflight: int = 0
    slots: int = 0
    busy_slots: int = 0
    pinned: bool = False
    ttl_s: float | None = None
    load_progress: float | None = None
    load_ms: float | None = None
    eta_ms: float | None = None
    tokens_per_second: float = 0.0
    restarts: int = 0
    last_error: str | None = None
    context_length: int = 0
    kv_cells: int = 0
    pid: int | None = None
    silent_s: float | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One of the scheduler's last decisions."""

    at_unix: float = 0.0
    action: str = ""
    model_id: str = ""
    reason: str = ""
    numbers: Mapping[str, float] = {}


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one device."""

    name: str = ""
    total_mb: float = 0.0
    free_mb: float = 0.0
    kind: str = ""
    ours_mb: float = 0.0
    foreign_mb: float = 0.0
    effective_mb: float | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /status`."""

    state: str
    version: str = ""
    node_id: str = ""
    server_time_unix: float = 0.0
    uptime_seconds: float = 0.0
    instances: tuple[Instance, ...] = ()
    budget_mb: float = 0.0
    effective_budget_mb: float | None = None
    shortage: str | None = None
    used_est_mb: float = 0.0
    reserved_mb: float = 0.0
    unaccounted_mb: float = 0.0
    margin_mb: float = 0.0
    error: str | None = None
    last_error: str | None = None
    warnings: tuple[str, ...] = ()
    evictions_total: int = 0
    loads_total: int = 0
    queued_total: int = 0
    inflight_total: int = 0
    devices: tuple[Device, ...] = ()
    decisions: tuple[Decision, ...] = ()


class RawDecisions(msgspec.Struct, frozen=True):
    """The decisions of `GET /status`, as they are."""

    decisions: tuple[msgspec.Raw, ...] = ()


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `GET /models`."""

    id: str
    quant: str = ""
    family: str = ""
    size_bytes: int = 0
    context_length: int = 0
    parameters: int = 0
    state: str = "stopped"
    aliases: tuple[str, ...] = ()
    default: bool = False
    pinned: bool = False
    kv_cells: int = 0
    slots: int = 0
    est_vram_mb: float = 0.0
    error: str | None = None


class Models(msgspec.Struct, frozen=True):
    """`GET /models`."""

    models: tuple[Model, ...]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A load, an unload or a switch, and how far it is."""

    id: str
    kind: str = ""
    model: str = ""
    state: str = "running"
    """running, done, failed, cancelled."""
    phase: str = ""
    """queued, evicting, loading, draining, stopping, done."""
    progress: float = 0.0
    reason: str = ""
    evicted: tuple[str, ...] = ()
    created_unix: float = 0.0
    ended_unix: float | None = None
    error: str | None = None
    code: int | None = None
    key: str | None = None
    """Name of the key of who asked, where keys are in force."""

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state != "running"


class Operations(msgspec.Struct, frozen=True):
    """`GET /operations`."""

    operations: tuple[Operation, ...] = ()


class Victim(msgspec.Struct, frozen=True):
    """Who would have to go."""

    model_id: str = ""
    mb: float = 0.0
    why: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /plan`."""

    model: str
    fits: bool
    verdict: str = ""
    needs_mb: float = 0.0
    free_mb: float | None = None
    budget_mb: float | None = None
    evicts: tuple[Victim, ...] = ()
    drains: tuple[Victim | str, ...] = ()
    wait_ms: float | None = None
    load_ms: float | None = None
    footprint: Mapping[str, float | str | bool | None] = {}
