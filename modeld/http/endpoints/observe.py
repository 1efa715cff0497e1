# SPDX-License-Identifier: GPL-3.0-only
"""Serve what the daemon says of itself: health, models, status, usage, events, metrics, its own contract.

None of these loads a model.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from quart import Response

from modeld.config.values import did_you_mean
from modeld.dialects.common.streaming import BLANK_LINE, NDJSON_TYPE
from modeld.dialects.native import (
    SSE_BEGIN,
    SSE_KEEPALIVE,
    SSE_TYPE,
    ModelsBody,
    as_line,
    as_sse,
    models_body,
)
from modeld.domain.catalog import resolve_model
from modeld.domain.daemon_events import EventKind, FleetEvent, Position, parse_position
from modeld.domain.status import DaemonStatus
from modeld.errors import Draining, InvalidRequest
from modeld.http.context import AppContext, HttpRequest
from modeld.http.endpoint import (
    ADMIN,
    ANY,
    OPEN,
    READ,
    READING,
    SSE_EVENT,
    Endpoint,
    Parameter,
    Success,
    refuse_unknown,
)
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.openapi.page import CONTENT_SECURITY_POLICY
from modeld.http.replies import json_reply, stream_reply, text_reply
from modeld.http.streaming import EventStreamBody
from modeld.quotas.client import EVERYBODY, Scope, visible_models
from modeld.quotas.usage import KeyBody, KeysBody, UsageReport


def healthz(context: AppContext, _request: HttpRequest) -> Response:
    """200 while the scheduler makes progress, else 503 with the reason."""
    reason = context.backend.health()
    return text_reply("ok") if reason is None else text_reply(reason, 503)


def readyz(context: AppContext, _request: HttpRequest) -> Response:
    """200 `ready`; 503 `loading` while models are preloaded at start, or `draining`."""
    state = context.backend.readiness()
    if state == "ready":
        return text_reply(state)
    response = text_reply(state, 503)
    response.headers["Retry-After"] = str(round(Draining.default_retry_after_s or 1))
    return response


async def list_models(context: AppContext, request: HttpRequest) -> Response:
    """List the models, with files that were just added and without those that were just removed."""
    await context.backend.refresh_catalog(CATALOG_MAX_AGE_S)
    catalog = visible_models(context.backend.catalog, request.client)
    return json_reply(models_body(catalog, context.backend.model_states()))


def status(context: AppContext, _request: HttpRequest) -> Response:
    """Return everything that the scheduler knows."""
    authorizer = context.authorizer
    current = msgspec.structs.replace(
        context.backend.status(),
        keys=None if authorizer.keyring is None else len(authorizer.keyring),
        warnings=authorizer.warnings,
    )
    return json_reply(current)


def usage(context: AppContext, request: HttpRequest) -> Response:
    """Return the use of all keys to a client that may read metrics; to others their own."""
    client = request.client
    everybody = client.may((Scope.METRICS, Scope.ADMIN))
    ring = context.authorizer.keyring
    known = () if ring is None else tuple(ring.clients.values())
    clients = (client,) if not everybody else known or (EVERYBODY,)
    return json_reply(context.accounts.report(clients, everybody=everybody))


def keys(context: AppContext, _request: HttpRequest) -> Response:
    """List the keys in force and their terms, without their secrets."""
    ring = context.authorizer.keyring
    clients = () if ring is None else ring.clients.values()
    return json_reply(KeysBody(keys=tuple(KeyBody.of(client) for client in clients)))


def metrics(context: AppContext, request: HttpRequest) -> Response:
    """Return metrics in Prometheus' text format, or in OpenMetrics if the client asks for it."""
    data, content_type = context.metrics.expose(request.headers.get("Accept", ""))
    return Response(data, content_type=content_type)


def openapi(context: AppContext, _request: HttpRequest) -> Response:
    """Return the OpenAPI 3.1 document."""
    return json_reply(context.openapi)


def docs(context: AppContext, _request: HttpRequest) -> Response:
    """Return the same as one page that needs nothing from elsewhere."""
    response = Response(context.docs_page, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


# ----------------------------------------------------------------------
# `GET /events`

_KEYS = ("model", "kind", "last_event_id")
_KINDS = tuple(kind.value for kind in EventKind)


def events(context: AppContext, request: HttpRequest) -> Response:
    """Stream what happens from now on, or after `Last-Event-ID`: as SSE, or as NDJSON by `Accept`."""
    refuse_unknown(request, _KEYS)
    wanted = _filter(context, request)
    after = _position(request)
    lines = request.accept_mimetypes.best_match((SSE_TYPE, NDJSON_TYPE, "application/json")) not in {
        SSE_TYPE,
        None,
    }
    content_type = NDJSON_TYPE if lines else SSE_TYPE
    if request.method == "HEAD":
        return stream_reply(b"", content_type)
    reader = context.backend.events.follow(after)
    request.cleanup.callback(reader.close)
    request.request_stream.cancel_on_disconnect()
    body = EventStreamBody(
        reader,
        wanted=wanted,
        show=as_line if lines else as_sse,
        begin=BLANK_LINE if lines else SSE_BEGIN,
        keepalive=BLANK_LINE if lines else SSE_KEEPALIVE,
        keep_alive_s=context.limits.stream_keep_alive_s,
    )
    return stream_reply(body, content_type)


def _filter(context: AppContext, request: HttpRequest) -> Callable[[FleetEvent], bool]:
    """Return the filter that a request asks for. `missed` always passes.

    Raises: InvalidRequest for an unknown kind, ModelNotFound.
    """
    catalog = context.backend.catalog
    names = _values(request, "model", lambda name: catalog.find(name) is not None)
    models = {resolve_model(catalog, name).id for name in names}
    kinds = {_kind(name) for name in _values(request, "kind")}

    def passes(event: FleetEvent) -> bool:
        if event.kind is EventKind.MISSED:
            return True
        if kinds and event.kind not in kinds:
            return False
        return not models or event.model in models or event.for_model in models

    return passes


def _values(
    request: HttpRequest, key: str, is_one: Callable[[str], bool] = lambda _value: False
) -> list[str]:
    """Return the values of a parameter that may be repeated or contain commas, unless `is_one` knows it."""
    found: list[str] = []
    for value in request.args.getlist(key):
        found += [value] if is_one(value) else [word.strip() for word in value.split(",") if word.strip()]
    return found


def _kind(name: str) -> EventKind:
    if name not in _KINDS:
        raise InvalidRequest(
            f'there is no kind "{name[:40]}"{did_you_mean(name, _KINDS)} (there are: {", ".join(_KINDS)})'
        )
    return EventKind(name)


def _position(request: HttpRequest) -> Position | None:
    """Return the event after which to go on: by header, as browsers do, or by parameter."""
    text = request.sent(b"last-event-id") or request.args.get("last_event_id", "")
    if not text:
        return None
    try:
        return parse_position(text)
    except ValueError as error:
        raise InvalidRequest(f"Last-Event-ID: {error}") from None


# ----------------------------------------------------------------------

_LINE = (
    '{"seq":46,"run":"1a205316f2a","at_unix":1764000000.555,"uptime_ms":15000.0,"kind":"evicting",'
    '"model":"tinyllama-q4.gguf","cause":"room","reason":"idle, and makes room for qwen-q8.gguf; '
    'cheapest to lose: 2.0 s of loading, 0.4 requests a minute","for_model":"qwen-q8.gguf",'
    '"numbers":{"frees_mb":410.0,"need_mb":690.0,"free_mb":120.0,"reload_s":2.0,"uses_per_min":0.39}}'
)
_TEXT: dict[str, object] = {"type": "string"}
_NAMES: dict[str, object] = {"type": "array", "items": {"type": "string"}}

ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/models",
        view=list_models,
        scopes=ANY,
        summary="List the models",
        answers=(Success(type=ModelsBody),),
    ),
    Endpoint(
        method="GET",
        path="/status",
        view=status,
        scopes=READ,
        summary="Everything the scheduler knows: memory, models, queues, the last 50 decisions with reasons",
        answers=(Success(type=DaemonStatus),),
    ),
    Endpoint(
        method="GET",
        path="/usage",
        view=usage,
        scopes=ANY,
        summary="What keys have used: all of them for `metrics` and `admin`, else the client's own",
        description="Today, by model, and in the last 400 days, and what is left of their limits.",
        answers=(Success(type=UsageReport),),
    ),
    Endpoint(
        method="GET",
        path="/keys",
        view=keys,
        scopes=ADMIN,
        summary="The keys in force and their terms, without secrets",
        answers=(Success(type=KeysBody),),
    ),
    Endpoint(
        method="GET",
        path="/events",
        view=events,
        scopes=ADMIN,
        summary="What the daemon does, live",
        description=(
            "Server-sent events, or one JSON object a line for `Accept: application/x-ndjson`. The stream "
            "begins with what happens next, and ends when the daemon stops. A client that reads too slowly "
            "gets an event `missed` with the number of events that it lost. A stream that is silent for "
            "15 s carries a comment, or an empty line. docs/events.md explains each kind."
        ),
        parameters=(
            Parameter(
                name="model", meaning="Only events of these models (ids, stems or aliases)", schema=_NAMES
            ),
            Parameter(
                name="kind",
                meaning="Only events of these kinds",
                schema={"type": "array", "items": {"enum": list(_KINDS)}},
            ),
            Parameter(name="last_event_id", meaning="As the header `Last-Event-ID`"),
            Parameter(
                name="Last-Event-ID", place="header", meaning="Go on after this event, if it is still kept"
            ),
        ),
        answers=(
            Success(
                type=SSE_EVENT,
                media_type=SSE_TYPE,
                meaning="Events",
                example=f"id: 1a205316f2a-46\nevent: evicting\ndata: {_LINE}\n\n",
            ),
            Success(type=FleetEvent, media_type=NDJSON_TYPE, example=f"{_LINE}\n"),
        ),
        refusals={
            400: "A parameter is unknown or wrong",
            404: READING[404],
            429: "Too many clients read the events already",
        },
    ),
    Endpoint(
        method="GET",
        path="/healthz",
        view=healthz,
        scopes=OPEN,
        summary="Health: 200 `ok`, or 503 with the reason",
        answers=tuple(
            Success(type=_TEXT, media_type="text/plain", status=status, example="ok") for status in (200, 503)
        ),
        any_host=True,
    ),
    Endpoint(
        method="GET",
        path="/readyz",
        view=readyz,
        scopes=OPEN,
        summary="Readiness: 200 `ready`, or 503 `loading` or `draining`",
        answers=tuple(
            Success(type=_TEXT, media_type="text/plain", status=status, example=text)
            for status, text in ((200, "ready"), (503, "loading"))
        ),
        any_host=True,
    ),
    Endpoint(
        method="GET",
        path="/metrics",
        view=metrics,
        scopes=READ,
        summary="Metrics for Prometheus",
        answers=(Success(type=_TEXT, media_type="text/plain"),),
    ),
    Endpoint(
        method="GET",
        path="/openapi.json",
        view=openapi,
        scopes=OPEN,
        summary="This document",
        answers=(Success(type={"type": "object"}),),
    ),
    Endpoint(
        method="GET",
        path="/docs",
        view=docs,
        scopes=OPEN,
        summary="This document as a page that works without internet",
        answers=(Success(type=_TEXT, media_type="text/html", meaning="The page"),),
    ),
)
