# SPDX-License-Identifier: GPL-3.0-only
"""What the HTTP edge needs of the runtime. `modeld.runtime.scheduler.Scheduler` is one of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from modeld.core.lifecycle import State
from modeld.core.models import Catalog, ModelSpec
from modeld.core.operations import OperationStatus
from modeld.core.plan import Plan
from modeld.core.request import Order
from modeld.core.status import DaemonStatus
from modeld.runtime.event_log import EventLog
from modeld.runtime.ticket import Ticket


class Control(Protocol):
    """What operators pull. `modeld.runtime.control.Control` is one of these; it says what is raised."""

    def load(
        self, name: str, *, pin: bool | None = None, keep_alive_s: float | None = None, key: str = ""
    ) -> OperationStatus:
        """Have a model loaded."""
        ...

    def unload(self, name: str, *, force: bool = False, key: str = "") -> OperationStatus:
        """Have a model unloaded."""
        ...

    def switch(self, name: str, *, key: str = "") -> OperationStatus:
        """Have a model loaded, and then all others unloaded that are not pinned."""
        ...

    def pin(self, name: str, *, pinned: bool, key: str = "") -> ModelSpec:
        """Pin a model or let it go."""
        ...

    def plan(self, name: str | None, *, context: int | None = None, slots: int | None = None) -> Plan:
        """What would happen if a model were loaded now."""
        ...

    def operations(self) -> tuple[OperationStatus, ...]:
        """The latest operations, the oldest first."""
        ...

    def operation(self, operation_id: str) -> OperationStatus:
        """One operation."""
        ...

    def give_up(self, operation_id: str, *, key: str = "") -> OperationStatus:
        """End an operation that is not wanted any more."""
        ...

    async def wait(self, operation_id: str, seconds: float) -> OperationStatus:
        """An operation when it has ended, or as it is after so long."""
        ...


class Backend(Protocol):
    """The runtime, as HTTP sees it."""

    @property
    def control(self) -> Control:
        """What operators pull."""
        ...

    @property
    def catalog(self) -> Catalog:
        """All models known now."""
        ...

    @property
    def events(self) -> EventLog:
        """What happens in the daemon."""
        ...

    def submit(self, order: Order, *, request_id: str) -> Ticket:
        """Take a request without waiting.

        Raises: ModeldError for what is known at once: ModelNotFound, QueueFull, Draining, DoesNotFit, ...
        """
        ...

    async def refresh_catalog(self, max_age_s: float) -> None:
        """Look for new and removed files, unless that was done within the last `max_age_s` seconds."""
        ...

    async def chat_template(self, spec: ModelSpec) -> str:
        """The chat template in a model's file; empty where there is none."""
        ...

    def model_states(self) -> Mapping[str, State]:
        """State by model id; models that are missing are stopped."""
        ...

    def status(self) -> DaemonStatus:
        """The whole daemon at this moment."""
        ...

    def health(self) -> str | None:
        """None while the scheduler makes progress, else what is wrong."""
        ...

    def readiness(self) -> str:
        """`ready`, `loading` or `draining`."""
        ...
