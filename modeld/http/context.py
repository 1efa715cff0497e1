# SPDX-License-Identifier: GPL-3.0-only
"""What a view is given: the app's context, and the request."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol, overload

from quart_trio.wrappers import TrioRequest

from modeld.config.settings import Settings
from modeld.domain.instance_state import InstanceState
from modeld.domain.model import Catalog, ModelSpec
from modeld.domain.operation import OperationStatus
from modeld.domain.request import Order
from modeld.domain.status import DaemonStatus
from modeld.http.auth import Authorizer
from modeld.http.limits import HttpLimits
from modeld.http.server.request_stream import RequestBody, RequestStream
from modeld.quotas.client import Client
from modeld.runtime.keys.accounts import KeyAccounts
from modeld.runtime.reporting.event_log import EventLog
from modeld.runtime.ticket import Ticket
from modeld.scheduler.plan import LoadPlan
from modeld.telemetry.metrics import Metrics

# ----------------------------------------------------------------------
# What the HTTP edge needs of the runtime. `modeld.runtime.scheduling.scheduler.Scheduler` is one of these.


class ControlBackend(Protocol):
    """What operators pull. `runtime.scheduling.control.Control` is one of these; it says what is raised."""

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

    def plan(self, name: str | None, *, context: int | None = None, slots: int | None = None) -> LoadPlan:
        """What would happen if a model were loaded now."""
        ...

    def operations(self) -> tuple[OperationStatus, ...]:
        """The latest operations, the oldest first."""
        ...

    def operation(self, operation_id: str) -> OperationStatus:
        """One operation."""
        ...

    def cancel(self, operation_id: str, *, key: str = "") -> OperationStatus:
        """End an operation that is not wanted any more."""
        ...

    async def wait(self, operation_id: str, seconds: float) -> OperationStatus:
        """An operation when it has ended, or as it is after so long."""
        ...


class Backend(Protocol):
    """The runtime, as HTTP sees it."""

    @property
    def control(self) -> ControlBackend:
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

    def model_states(self) -> Mapping[str, InstanceState]:
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


# ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AppContext:
    """The parts that the HTTP edge is made of."""

    backend: Backend
    settings: Settings
    limits: HttpLimits
    metrics: Metrics
    accounts: KeyAccounts
    authorizer: Authorizer
    openapi: bytes
    """The OpenAPI document."""
    docs_page: str
    """The same, as a page."""


class HttpRequest(TrioRequest):
    """A request with its id and what is to be undone when it ends.

    Attributes:
      id: what logs and answers carry.
      cleanup: closed when the request ends, however it ends, also when its body was never sent.
      request_stream: told once there is work that a client who leaves no longer wants. Until then the
        request is answered, also after a half-close: it takes no longer than to read it.
      client: who sends it, by its key; set before its route is entered.
    """

    body_class = RequestBody
    body: RequestBody

    id: str
    request_stream: RequestStream
    cleanup: ExitStack
    client: Client

    @overload
    def sent(self, name: bytes, default: str = "") -> str: ...

    @overload
    def sent(self, name: bytes, default: None) -> str | None: ...

    def sent(self, name: bytes, default: str | None = "") -> str | None:
        """Return a header's first value by its name in small letters.

        As `headers.get`, but that one raises and catches an exception for each header which is not there.
        """
        for key, value in self.scope["headers"]:
            if key == name:
                return value.decode("latin-1")
        return default
