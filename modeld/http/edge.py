# SPDX-License-Identifier: GPL-3.0-only
"""What every route has at hand, and the request as routes see it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import trio
from quart import request
from quart_trio.wrappers import TrioRequest

from modeld.config.settings import Settings
from modeld.http.backend import Backend
from modeld.http.limits import Limits
from modeld.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The parts that the HTTP edge is made of."""

    backend: Backend
    settings: Settings
    limits: Limits
    metrics: Metrics


class EdgeRequest(TrioRequest):
    """A request with its id and what is to be undone when it ends.

    Attributes:
      id: what logs and answers carry.
      cleanup: closed when the request ends, however it ends, also when its body was never sent.
      work_began: set once there is work that a client who leaves no longer wants. Until then the
        request is answered, also after a half-close: it takes no longer than to read it.
    """

    id: str
    work_began: trio.Event
    cleanup: ExitStack


def current_request() -> EdgeRequest:
    """Return the request that this task serves."""
    return cast("EdgeRequest", request)
