# SPDX-License-Identifier: GPL-3.0-only
"""`POST /infer`: one request for text, from its body to its stream."""

from __future__ import annotations

from collections.abc import Iterable

from quart import Response

from modeld.dialects import native
from modeld.dialects.framing import NDJSON_TYPE
from modeld.http.body import read_json
from modeld.http.edge import Edge, current_request
from modeld.http.routes.generation import generate
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
        command = native.parse(await read_json(request))

        def renderer_for(ticket: Ticket) -> native.Renderer:
            return native.Renderer(
                model=ticket.model.id, request_id=request.id, events=command.events, echo=command.echo
            )

        return await generate(
            self._edge,
            request,
            command.order,
            renderer_for,
            stream=NDJSON_TYPE if command.stream else None,
            at_once=command.events,
        )
