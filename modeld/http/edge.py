# SPDX-License-Identifier: GPL-3.0-only
"""What every route has at hand, and the request as routes see it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast, overload

import trio
from quart.globals import request_ctx
from quart_trio.wrappers import TrioRequest
from quart_trio.wrappers.request import TrioBody
from werkzeug.exceptions import RequestEntityTooLarge

from modeld.config.settings import Settings
from modeld.core.client import Client
from modeld.http.backend import Backend
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


class EdgeBody(TrioBody):
    """The body of a request as it arrives."""

    def refuse(self) -> None:
        """Have who reads it raise Quart's 413 at once, as for one that was declared too large."""
        self._must_raise = RequestEntityTooLarge()
        self.set_complete()


class EdgeRequest(TrioRequest):
    """A request with its id and what is to be undone when it ends.

    Attributes:
      id: what logs and answers carry.
      cleanup: closed when the request ends, however it ends, also when its body was never sent.
      work_began: set once there is work that a client who leaves no longer wants. Until then the
        request is answered, also after a half-close: it takes no longer than to read it.
      client: who sends it, by its key; set before its route is entered.
    """

    body_class = EdgeBody
    body: EdgeBody

    id: str
    work_began: trio.Event
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


def current_request() -> EdgeRequest:
    """Return the request that this task serves."""
    # Not the proxy `quart.request`: each look through that finds the request anew.
    return cast("EdgeRequest", request_ctx.request)
