# SPDX-License-Identifier: GPL-3.0-only
"""`GET /events`: what the daemon does, live."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quart import Response

from modeld.config.nearest import did_you_mean
from modeld.core.fleet_events import FleetEvent, Kind, Position, parse_position
from modeld.core.naming import named
from modeld.dialects.framing import BLANK_LINE, NDJSON_TYPE
from modeld.dialects.native import SSE_BEGIN, SSE_STILL_HERE, SSE_TYPE, as_line, as_sse
from modeld.errors import InvalidRequest
from modeld.http.edge import Edge, EdgeRequest, current_request
from modeld.http.live import LiveBody
from modeld.http.reply import stream_reply
from modeld.http.routes.parameters import refuse_unknown
from modeld.http.routes.table import Route
from modeld.runtime.event_log import Reader

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
