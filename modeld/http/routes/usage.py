# SPDX-License-Identifier: GPL-3.0-only
"""`GET /usage`: what keys have used. `GET /keys`: which there are."""

from __future__ import annotations

from collections.abc import Iterable

from quart import Response

from modeld.core.client import EVERYBODY, Scope
from modeld.core.usage import KeyBody, KeysBody
from modeld.http.auth import Guard
from modeld.http.edge import Edge, current_request
from modeld.http.reply import json_reply
from modeld.http.routes.table import Route


class UsageRoutes:
    """`/usage` and `/keys`."""

    def __init__(self, edge: Edge, guard: Guard) -> None:
        self._accounts = edge.accounts
        self._guard = guard

    def table(self) -> Iterable[Route]:
        """Return the routes."""
        return (("/usage", self.usage, ["GET"]), ("/keys", self.keys, ["GET"]))

    async def usage(self) -> Response:
        """Tell the use of all keys to who may read metrics; to others their own."""
        client = current_request().client
        everybody = client.may((Scope.METRICS, Scope.ADMIN))
        ring = self._guard.keyring
        known = () if ring is None else tuple(ring.clients.values())
        clients = (client,) if not everybody else known or (EVERYBODY,)
        return json_reply(self._accounts.report(clients, everybody=everybody))

    async def keys(self) -> Response:
        """List the keys in force and their terms, without their secrets."""
        ring = self._guard.keyring
        clients = () if ring is None else ring.clients.values()
        return json_reply(KeysBody(keys=tuple(KeyBody.of(client) for client in clients)))
