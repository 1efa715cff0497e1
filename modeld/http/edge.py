# SPDX-License-Identifier: GPL-3.0-only
"""What every route has at hand, and the request as routes see it."""

from __future__ import annotations

from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import overload

from quart_trio.wrappers import TrioRequest

from modeld.config.settings import Settings
from modeld.core.client import Client
from modeld.http.backend import Backend
from modeld.http.inbound import Inbound, InboundBody
from modeld.http.limits import Limits
from modeld.runtime.accounts import Accounts
from modeld.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The parts that the HTTP edge is made of."""

    backend: Backend
    settings: Settings
    limits: Limits
    metrics: Metrics
    accounts: Accounts


class EdgeRequest(TrioRequest):
    """A request with its id and what is to be undone when it ends.

    Attributes:
      id: what logs and answers carry.
      cleanup: closed when the request ends, however it ends, also when its body was never sent.
      inbound: told once there is work that a client who leaves no longer wants. Until then the
        request is answered, also after a half-close: it takes no longer than to read it.
      client: who sends it, by its key; set before its route is entered.
    """

    body_class = InboundBody
    body: InboundBody

    id: str
    inbound: Inbound
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


_current: ContextVar[EdgeRequest] = ContextVar("modeld_request")
"""Set in the task of each request, which has a context of its own."""


def current_request() -> EdgeRequest:
    """Return the request that this task serves. Raises: LookupError in any other task."""
    return _current.get()


def serving(request: EdgeRequest) -> None:
    """Say that this task serves a request, to its end."""
    _current.set(request)
