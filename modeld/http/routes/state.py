# SPDX-License-Identifier: GPL-3.0-only
"""What the daemon says of itself: health, readiness, models, status. None of these wakes a model."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from quart import Response

from modeld.core.client import visible
from modeld.dialects.native import models_body
from modeld.errors import Draining
from modeld.http.auth import Guard
from modeld.http.edge import Edge, current_request
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.reply import json_reply, text_reply
from modeld.http.routes.table import Route


class StateRoutes:
    """`/healthz`, `/readyz`, `/models`, `/status`."""

    def __init__(self, edge: Edge, guard: Guard) -> None:
        self._backend = edge.backend
        self._guard = guard

    def table(self) -> Iterable[Route]:
        """Return the routes."""
        return (
            ("/healthz", self.healthz, ["GET"]),
            ("/readyz", self.readyz, ["GET"]),
            ("/models", self.models, ["GET"]),
            ("/status", self.status, ["GET"]),
        )

    async def healthz(self) -> Response:
        """200 while the scheduler makes progress, else 503 with the reason."""
        reason = self._backend.health()
        return text_reply("ok") if reason is None else text_reply(reason, 503)

    async def readyz(self) -> Response:
        """200 `ready`; 503 `loading` while models of the start are preloaded, or `draining`."""
        state = self._backend.readiness()
        if state == "ready":
            return text_reply(state)
        response = text_reply(state, 503)
        response.headers["Retry-After"] = str(round(Draining.default_retry_after_s or 1))
        return response

    async def models(self) -> Response:
        """List the models, with files that just came and without those that just went."""
        await self._backend.refresh_catalog(CATALOG_MAX_AGE_S)
        catalog = visible(self._backend.catalog, current_request().client)
        return json_reply(models_body(catalog, self._backend.model_states()))

    async def status(self) -> Response:
        """Tell everything that the scheduler knows."""
        guard = self._guard
        status = msgspec.structs.replace(
            self._backend.status(),
            keys=None if guard.keyring is None else len(guard.keyring),
            warnings=guard.warnings,
        )
        return json_reply(status)
