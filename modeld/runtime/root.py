# SPDX-License-Identifier: GPL-3.0-only
"""The root of the supervisor tree: start in dependency order, stop in reverse.

    root -+- signals - watchdog - registry
          +- scheduler - supervise[model] - instance[model] - worker
          +- front (ends first)

The stop: refuse new work, let requests finish until `drain_timeout`, end the rest with a legal last
event, let the front write it until `shutdown_timeout`, then stop the fleet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import structlog
import trio
from trio_util import wait_any

import modeld
from modeld.config.rules import drain_patience, fleet_stop_s
from modeld.config.settings import Settings, for_model
from modeld.domain.daemon_events import EventKind
from modeld.domain.model import MIB, Catalog, EngineKind, ModelSpec
from modeld.runtime import systemd
from modeld.runtime.catalog.registry import ModelRegistry
from modeld.runtime.daemon import Daemon
from modeld.runtime.memory.device_watch import DeviceSource, DeviceWatch, MachineDevices
from modeld.runtime.memory.footprints import FootprintEstimator, FootprintStore
from modeld.runtime.memory.machine import auto_share, budget_bytes, sizing_capacity
from modeld.runtime.reporting.event_log import EventLog, EventSink
from modeld.runtime.reporting.observer import SchedulerObserver
from modeld.runtime.reporting.status import StatusReporter
from modeld.runtime.scheduling.scheduler import Scheduler
from modeld.runtime.signals import StopSignals
from modeld.scheduler.state import SchedulerLimits
from modeld.telemetry.metrics import Metrics
from modeld.worker.host import Host

_log = structlog.stdlib.get_logger("modeld.root")
LAST_RESORT_S = 0.7
"""After `shutdown_timeout` and this, whoever composed the tree may end the process by force."""


class FrontEnd(Protocol):
    """The part that talks to clients. It is given the daemon, and told when to stop."""

    async def __call__(
        self,
        daemon: Daemon,
        *,
        shutdown: trio.Event,
        task_status: trio.TaskStatus[list[str]],
    ) -> None:
        """Serve until `shutdown` is set and the last answers are written.

        `task_status.started` gets the URLs it listens on.
        """
        ...


class Root:
    """Builds the tree from the settings, and runs it."""

    def __init__(
        self,
        settings: Settings,
        *,
        host: Host,
        metrics: Metrics,
        supervision: systemd.SystemdContext,
        node_id: str,
        on_stop: Callable[[float], None] = lambda _seconds: None,
        on_hangup: Callable[[], None] = lambda: None,
        events: EventSink | None = None,
        devices: DeviceSource | None = None,
    ) -> None:
        """`on_stop` is called when a stop begins, with the seconds after which the process must be gone.

        `on_hangup` is called at each SIGHUP. `events` gets every event, and is then opened again. `devices`
        tells of the devices' memory; by default llama.cpp's are watched, where it loads the models.
        """
        self._settings = settings
        self._on_stop = on_stop
        self._on_hangup = on_hangup
        self._supervision = supervision
        self._events = EventLog(events, clock=trio.current_time)
        self._observer = SchedulerObserver(metrics, self._events)
        limits = limits_of(settings)
        self._weighs = settings.engine is EngineKind.LLAMA  # What the fake engine takes, nobody can tell.
        self._estimator = FootprintEstimator(
            FootprintStore(settings.state_dir),
            publish=self._publish,
            dry_runs=settings.dry_runs,
            idle=lambda: self._scheduler.inside.wait_value(0),
        )
        self._scheduler = Scheduler(
            limits=limits,
            host=host,
            observer=self._observer,
            engine=settings.engine,
            fake_script=self._fake_script,
            max_stream_backlog=settings.max_stream_backlog,
            stall_timeout_s=settings.stall_timeout,
            memory_observer=self._estimator if self._weighs else None,
        )
        self._registry = ModelRegistry(settings, on_change=self._catalog_changed)
        self._preloaded: set[str] = set()
        self._serves = False
        """Whether the front takes requests: a model that comes later does not take readiness back."""
        reporter = StatusReporter(self._scheduler, self._observer, node_id=node_id)
        watches = settings.vram_watch and (self._weighs or devices is not None)
        self._devices = DeviceWatch(devices or MachineDevices(), self._scheduler, watches=watches)
        self.daemon = Daemon(self._scheduler, self._registry, reporter, self._events, self._devices)

    async def run(self, front: FrontEnd, announce: Callable[[list[str]], None]) -> None:
        """Run until a signal asks to stop; `announce` gets the URLs once everything is up.

        Raises: what the front's start raises, such as OSError for an address in use.
        Cancellation: stops everything at once, but in the same order.
        """
        signals = StopSignals(on_hangup=self._hangup)
        limits = self._scheduler.fleet.limits
        self._observer.daemon(
            EventKind.DAEMON_STARTED,
            f"modeld {modeld.__version__}",
            budget_mb=(limits.budget or 0) / MIB,
            margin_mb=limits.margin / MIB,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(signals.run)
            await nursery.start(self._scheduler.run)
            await nursery.start(self._devices.run)
            if self._settings.vram_budget_mb is None:
                self._scheduler.widen_budget(auto_share(self._devices.free_on_cards()))
            self._registry.size_by(sizing_capacity(self._scheduler.fleet.limits, self._devices.known()))
            if self._weighs:
                await nursery.start(self._estimator.run)
            await nursery.start(self._registry.run)
            shutdown = trio.Event()
            async with trio.open_nursery() as front_nursery:
                start = partial(front, self.daemon, shutdown=shutdown)
                announce(await front_nursery.start(start))
                self._serves = True
                self._tell_systemd(nursery)
                await signals.first.wait()
                self._on_stop(self._settings.shutdown_timeout + LAST_RESORT_S)
                deadline = trio.current_time() + self._settings.shutdown_timeout
                await self._drain(signals)
                self._events.close()
                shutdown.set()
                front_nursery.cancel_scope.deadline = deadline - fleet_stop_s(self._settings)
            _log.info("the front is closed, the fleet stops")
            nursery.cancel_scope.cancel()
        self._observer.daemon(EventKind.DAEMON_STOPPED, "the front is closed and all models are gone")

    async def _drain(self, signals: StopSignals) -> None:
        inside, patience = self._scheduler.inside, drain_patience(self._settings)
        _log.info("draining", inside=inside.value, drain_timeout_s=patience)
        self._supervision.notifier.stopping(f"draining {inside.value} requests")
        self._scheduler.drain()
        with trio.move_on_after(patience):
            await wait_any(partial(inside.wait_value, 0), signals.second.wait)
        self._scheduler.cut_all()

    def _tell_systemd(self, nursery: trio.Nursery) -> None:
        notifier, watchdog_s = self._supervision.notifier, self._supervision.watchdog_s
        notifier.ready()
        if watchdog_s is not None:
            nursery.start_soon(systemd.feed_watchdog, notifier, watchdog_s, self._scheduler.health)

    def _fake_script(self, spec: ModelSpec) -> str:
        return for_model(self._settings, self._registry.settings_of(spec.id)).fake

    def _hangup(self) -> None:
        _log.warning(
            "SIGHUP: keys and certificates are read again and events_file is opened again, if there are any; "
            "new models are noticed all the time; settings are read at the start only: restart to change them"
        )
        self._events.reopen()
        self._on_hangup()

    def _publish(self, catalog: Catalog) -> None:
        self._scheduler.set_catalog(catalog)

    def _catalog_changed(self, catalog: Catalog) -> None:
        if self._weighs:
            self._estimator.take(catalog)
        else:
            self._scheduler.set_catalog(catalog)
        for spec in catalog.models.values():
            if spec.preload and spec.error is None and spec.id not in self._preloaded:
                self._preloaded.add(spec.id)
                self._scheduler.preload(spec.id, at_start=not self._serves)


def limits_of(settings: Settings) -> SchedulerLimits:
    """Return the limits the scheduler decides by."""
    return SchedulerLimits(
        budget=budget_bytes(settings.vram_budget_mb),
        margin=settings.vram_margin_mb * MIB,
        max_queue_depth=settings.max_queue_depth,
        max_queue_total=settings.max_queue_total,
        max_wait_s=settings.max_wait,
        max_wait_before_drain_s=settings.max_wait_before_drain,
        share_tokens=settings.share_tokens,
        quantum_s=settings.quantum,
        backlog_time_s=settings.max_wait / 3 if settings.backlog_time is None else settings.backlog_time,
        min_residency_s=settings.min_residency,
        evict_timeout_s=settings.evict_timeout,
        cut_streams=settings.cut_streams,
        infer_timeout_s=settings.infer_timeout,
        cores=settings.llama_threads,
    )
