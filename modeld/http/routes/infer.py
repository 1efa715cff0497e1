# SPDX-License-Identifier: GPL-3.0-only
"""`POST /infer`: one request for text, from its body to its stream."""

from __future__ import annotations

from collections.abc import Iterable

from quart import Response

from modeld.core.events import Event, Failed
from modeld.dialects import native
from modeld.dialects.framing import NDJSON_TYPE
from modeld.http.body import StreamBody, read_json
from modeld.http.edge import Edge, current_request
from modeld.http.errors import BACKPRESSURE, error_headers
from modeld.http.infer_log import InferLog, wanted_level
from modeld.http.reply import json_reply
from modeld.http.routes.submission import submit
from modeld.http.routes.table import Route
from modeld.runtime.ticket import Ticket


class InferRoute:
    """`/infer`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def table(self) -> Iterable[Route]:
        """Return the route."""
        return (("/infer", self.infer, ["POST"]),)

    async def infer(self) -> Response:
        """Stream text, or return it whole. The status waits for the first token or the first failure."""
        request = current_request()
        body = await read_json(request)
        level = wanted_level(request)
        command = native.parse(body)
        ticket = await submit(self._edge, request, command.order)
        request.work_began.set()
        log = InferLog(level, request_id=request.id, model=ticket.model.id)
        renderer = native.Renderer(
            model=ticket.model.id, request_id=request.id, events=command.events, echo=command.echo
        )
        # Called last to first: the ticket is closed before its end is told.
        request.cleanup.callback(lambda: log.ended(renderer.last))
        request.cleanup.callback(ticket.close)
        log.began(stream=command.stream)
        if not command.stream:
            return await self._whole(ticket, renderer)
        first = () if command.events else await _until_text(ticket)
        if first and isinstance(first[0], Failed):
            renderer.last = first[0]
            raise first[0].problem.as_error()
        request.cleanup.callback(self._count, renderer)
        stream = StreamBody(
            ticket,
            renderer,
            first,
            log=log,
            keep_alive_s=self._edge.limits.stream_keep_alive_s,
            at_once=command.events,
        )
        response = Response(stream, content_type=NDJSON_TYPE)
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Accel-Buffering"] = "no"
        return response

    async def _whole(self, ticket: Ticket, renderer: native.Renderer) -> Response:
        answer = None
        while answer is None:
            answer = renderer.take(await ticket.next())
        if not isinstance(renderer.last, Failed):
            return json_reply(answer)
        self._count(renderer)
        problem = renderer.last.problem
        response = json_reply(answer, problem.status)
        response.headers.update(error_headers(problem))
        return response

    def _count(self, renderer: native.Renderer) -> None:
        """Count a refusal that does not pass through the app's error handler."""
        if isinstance(renderer.last, Failed) and renderer.last.problem.status in BACKPRESSURE:
            self._edge.metrics.count_backpressure(renderer.last.problem.kind)


async def _until_text(ticket: Ticket) -> tuple[Event, ...]:
    """Wait for what decides the status, and return it with all that came along; waiting is not told."""
    while True:
        events = await ticket.next()
        for at, event in enumerate(events):
            if native.shows_text(event):
                return events[at:]
