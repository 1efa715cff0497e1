# SPDX-License-Identifier: GPL-3.0-only
"""Assemble `/status` from the fleet's snapshot and its instances."""

from __future__ import annotations

import time

import trio

import modeld
from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, FootprintSource
from modeld.domain.status import DaemonStatus, DeviceStatus, InstanceStatus
from modeld.memory.layer_placement import in_mib
from modeld.runtime.instances.instance import Instance
from modeld.runtime.reporting.observer import SchedulerObserver
from modeld.runtime.scheduling.scheduler import Scheduler
from modeld.scheduler.capacity import shortage
from modeld.scheduler.deadlines import stay_deadline
from modeld.scheduler.eta import eta
from modeld.scheduler.state import Fleet, InstanceView


class StatusReporter:
    """Knows when the daemon started and who it is; everything else it looks up."""

    def __init__(self, scheduler: Scheduler, observer: SchedulerObserver, *, node_id: str) -> None:
        self._scheduler = scheduler
        self._observer = observer
        self._node_id = node_id
        self._started = trio.current_time()

    def report(self, devices: tuple[DeviceStatus, ...] = (), error: str | None = None) -> DaemonStatus:
        """Return the whole daemon at this moment. `error` is what is wrong right now, if anything."""
        fleet = self._scheduler.fleet
        now = trio.current_time()
        wall = time.time() - now
        instances = tuple(
            _instance(fleet, view, self._scheduler.instances.get(view.model_id), wall)
            for view in sorted(fleet.instances.values(), key=lambda view: view.model_id)
        )
        stuck = [view for view in fleet.instances.values() if view.stuck is not None]
        loading = [view for view in fleet.instances.values() if view.state is InstanceState.LOADING]
        return DaemonStatus(
            state=self._scheduler.readiness(),
            version=modeld.__version__,
            node_id=self._node_id,
            server_time_unix=wall + now,
            uptime_seconds=now - self._started,
            instances=instances,
            budget_mb=(fleet.limits.budget or 0) / MIB,
            effective_budget_mb=None if fleet.budget is None else fleet.budget / MIB,
            shortage=shortage(fleet),
            used_est_mb=fleet.held / MIB,
            reserved_mb=sum(view.reserved for view in loading) / MIB,
            unaccounted_mb=sum(view.reserved for view in stuck) / MIB,
            margin_mb=fleet.limits.margin / MIB,
            error=error or self._scheduler.health(),
            last_error=self._observer.last_error,
            evictions_total=fleet.evictions,
            loads_total=fleet.loads,
            warmups_in_progress=len(loading),
            draining_count=sum(view.state is InstanceState.DRAINING for view in fleet.instances.values()),
            queued_total=sum(instance.queue_len for instance in instances),
            inflight_total=sum(instance.inflight for instance in instances),
            devices=devices,
            decisions=self._observer.decisions,
            events=self._observer.events.status(),
        )


def _instance(fleet: Fleet, view: InstanceView, instance: Instance | None, wall: float) -> InstanceStatus:
    spec = fleet.catalog.models.get(view.model_id)
    info = None if instance is None else instance.info
    problem = view.failures.problem
    measured = None if instance is None else instance.measured
    waiting = fleet.queue_len(view.model_id)
    now = trio.current_time()
    eta_s = eta(fleet, view.model_id, waiting, now) if waiting else None
    stays = stay_deadline(fleet, view, now)
    return InstanceStatus(
        model_id=view.model_id,
        state=InstanceState.ERROR if view.stuck is not None else view.state,
        last_used_unix=view.last_used + wall if view.last_used else 0.0,
        est_vram_mb=(view.reserved or (spec.footprint.total if spec else 0)) / MIB,
        devices_mb=in_mib({} if view.placement is None else view.placement.bytes),
        placement=None if view.placement is None else view.placement.reason,
        queue_len=waiting,
        eta_ms=None if eta_s is None else eta_s * 1000,
        inflight=view.inflight,
        max_queue_depth=fleet.queue_depth(view.model_id),
        pid=None if instance is None else instance.pid,
        estimate_mb=0.0 if spec is None else (spec.scale.base.total or spec.footprint.total) / MIB,
        estimate_source=str(FootprintSource.FORMULA if spec is None else spec.scale.source),
        learned_ratio=1.0 if spec is None else spec.scale.ratio,
        measured_mb=None if measured is None else measured / MIB,
        slots=view.slots,
        busy_slots=view.inflight,
        pinned=spec is not None and spec.pinned,
        ttl_s=None if spec is None else spec.ttl_s,
        keep_until_unix=None if stays is None else stays + wall,
        load_progress=instance.progress
        if instance is not None and view.state is InstanceState.LOADING
        else None,
        load_ms=view.load_s * 1000 if view.load_s else None,
        tokens_per_second=0.0 if instance is None else instance.tokens_per_second(),
        restarts=view.restarts,
        last_error=None if problem is None else problem.message,
        context_length=0 if info is None else info.context,
        kv_cells=0 if info is None else info.cells,
        sizing=None if spec is None else spec.sizing or None,
        threads=view.threads,
        silent_s=None if instance is None or view.inflight == 0 else now - instance.last_step,
    )
