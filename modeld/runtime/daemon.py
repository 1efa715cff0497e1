# SPDX-License-Identifier: GPL-3.0-only
"""The daemon as its front sees it: submit requests, and ask how things are."""

from __future__ import annotations

from collections.abc import Mapping

from modeld.core.lifecycle import State
from modeld.core.models import Catalog, ModelSpec
from modeld.core.request import Order
from modeld.core.status import DaemonStatus
from modeld.runtime.control import Control
from modeld.runtime.devices import DeviceWatch
from modeld.runtime.event_log import EventLog
from modeld.runtime.registry import Registry
from modeld.runtime.scheduler import Scheduler
from modeld.runtime.status import StatusReporter
from modeld.runtime.templates import Templates
from modeld.runtime.ticket import Ticket


class Daemon:
    """A facade without state of its own: the scheduler, the registry, the status and the events."""

    def __init__(
        self,
        scheduler: Scheduler,
        registry: Registry,
        reporter: StatusReporter,
        events: EventLog,
        devices: DeviceWatch,
    ) -> None:
        self.events = events
        self._scheduler = scheduler
        self._registry = registry
        self._reporter = reporter
        self._devices = devices
        self._control = Control(scheduler)
        self._templates = Templates()

    def submit(self, order: Order, *, request_id: str) -> Ticket:
        """Take a request in. Raises: see `Scheduler.submit`."""
        return self._scheduler.submit(order, request_id=request_id)

    @property
    def control(self) -> Control:
        """What operators pull."""
        return self._control

    @property
    def catalog(self) -> Catalog:
        """The models known now."""
        return self._scheduler.catalog

    async def refresh_catalog(self, max_age_s: float) -> None:
        """Look at the folder again if the last look is older than `max_age_s` seconds."""
        await self._registry.refresh(max_age_s)

    async def chat_template(self, spec: ModelSpec) -> str:
        """Return the chat template in a model's file; empty where there is none."""
        return await self._templates.of(spec)

    def model_states(self) -> Mapping[str, State]:
        """Return the state of every model."""
        return self._scheduler.model_states()

    def status(self) -> DaemonStatus:
        """Return the whole daemon at this moment."""
        return self._reporter.report(
            self._devices.statuses(), error=self._registry.error or self._devices.problem
        )

    def health(self) -> str | None:
        """Return None while the scheduler makes progress, else what is wrong; see `Scheduler.health`."""
        return self._scheduler.health()

    def readiness(self) -> str:
        """Return `ready`, `loading` or `draining`."""
        return self._scheduler.readiness()
