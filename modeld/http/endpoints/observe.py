# SPDX-License-Identifier: GPL-3.0-only
"""What the daemon says of itself: health, readiness, models, status. None of these wakes a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
from quart import Response

from modeld.config.values import did_you_mean
from modeld.dialects.common.streaming import BLANK_LINE, NDJSON_TYPE, json_bytes
from modeld.dialects.native import SSE_BEGIN, SSE_STILL_HERE, SSE_TYPE, as_line, as_sse, models_body
from modeld.domain.catalog import named
from modeld.domain.daemon_events import FleetEvent, Kind, Position, parse_position
from modeld.errors import Draining, InvalidRequest
from modeld.http.auth import Guard
from modeld.http.context import Edge, EdgeRequest, current_request
from modeld.http.endpoint import Route, refuse_unknown
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.openapi.document import openapi_document
from modeld.http.openapi.page import CONTENT_SECURITY_POLICY, docs_page
from modeld.http.replies import json_reply, stream_reply, text_reply
from modeld.http.streaming import LiveBody
from modeld.quotas.client import EVERYBODY, Scope, visible
from modeld.quotas.usage import KeyBody, KeysBody
from modeld.runtime.reporting.event_log import Reader


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


# ----------------------------------------------------------------------
# `GET /usage`: what keys have used. `GET /keys`: which there are.


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


# ----------------------------------------------------------------------
# What there is about the API itself: metrics, the OpenAPI document, and a page to read it.


class MetaRoutes:
    """`/metrics`, `/openapi.json`, `/docs`."""

    def __init__(self, edge: Edge) -> None:
        self._metrics = edge.metrics
        document = openapi_document()
        self._document = json_bytes(document)
        self._page = docs_page(document)

    def table(self) -> Iterable[Route]:
        """Return the routes."""
        return (
            ("/metrics", self.metrics, ["GET"]),
            ("/openapi.json", self.openapi, ["GET"]),
            ("/docs", self.docs, ["GET"]),
        )

    async def metrics(self) -> Response:
        """Prometheus' text format, or OpenMetrics for those who ask for it."""
        data, content_type = self._metrics.expose(current_request().headers.get("Accept", ""))
        return Response(data, content_type=content_type)

    async def openapi(self) -> Response:
        """Return the OpenAPI 3.1 document."""
        return json_reply(self._document)

    async def docs(self) -> Response:
        """One page that needs nothing from elsewhere."""
        response = Response(self._page, content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


# ----------------------------------------------------------------------
# `GET /events`: what the daemon does, live.

_KEYS = ("model", "kind", "last_event_id")
_KINDS = tuple(kind.value for kind in Kind)


class EventsRoute:
    """`/events`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def table(self) -> Iterable[Route]:
        """Return the route."""
        return (("/events", self.events, ["GET"]),)

    async def events(self) -> Response:
        """Stream what happens from now on, or after `Last-Event-ID`: as SSE, or as NDJSON by `Accept`."""
        request = current_request()
        refuse_unknown(request, _KEYS)
        wanted = self._wanted(request)
        after = _after(request)
        lines = request.accept_mimetypes.best_match((SSE_TYPE, NDJSON_TYPE, "application/json")) not in {
            SSE_TYPE,
            None,
        }
        content_type = NDJSON_TYPE if lines else SSE_TYPE
        if request.method == "HEAD":
            return stream_reply(b"", content_type)
        reader = self._edge.backend.events.follow(after)
        request.cleanup.callback(reader.close)
        request.inbound.work_began()
        return stream_reply(self._body(reader, wanted, lines=lines), content_type)

    def _body(self, reader: Reader, wanted: Callable[[FleetEvent], bool], *, lines: bool) -> LiveBody:
        return LiveBody(
            reader,
            wanted=wanted,
            show=as_line if lines else as_sse,
            begin=BLANK_LINE if lines else SSE_BEGIN,
            still_here=BLANK_LINE if lines else SSE_STILL_HERE,
            keep_alive_s=self._edge.limits.stream_keep_alive_s,
        )

    def _wanted(self, request: EdgeRequest) -> Callable[[FleetEvent], bool]:
        """Return the filter that a request asks for. `missed` always passes.

        Raises: InvalidRequest for a kind that there is not, ModelNotFound.
        """
        catalog = self._edge.backend.catalog
        names = _listed(request, "model", lambda name: catalog.find(name) is not None)
        models = {named(catalog, name).id for name in names}
        kinds = {_kind(name) for name in _listed(request, "kind")}

        def passes(event: FleetEvent) -> bool:
            if event.kind is Kind.MISSED:
                return True
            if kinds and event.kind not in kinds:
                return False
            return not models or event.model in models or event.for_model in models

        return passes


def _listed(
    request: EdgeRequest, key: str, is_one: Callable[[str], bool] = lambda _value: False
) -> list[str]:
    """Return the values of a parameter that may be repeated, or have commas; `is_one` knows it whole."""
    found: list[str] = []
    for value in request.args.getlist(key):
        found += [value] if is_one(value) else [word.strip() for word in value.split(",") if word.strip()]
    return found


def _kind(name: str) -> Kind:
    if name not in _KINDS:
        raise InvalidRequest(
            f'there is no kind "{name[:40]}"{did_you_mean(name, _KINDS)} (there are: {", ".join(_KINDS)})'
        )
    return Kind(name)


def _after(request: EdgeRequest) -> Position | None:
    """Return after which event to go on: by header, as browsers do, or by parameter."""
    text = request.sent(b"last-event-id") or request.args.get("last_event_id", "")
    if not text:
        return None
    try:
        return parse_position(text)
    except ValueError as error:
        raise InvalidRequest(f"Last-Event-ID: {error}") from None
