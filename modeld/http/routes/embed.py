# SPDX-License-Identifier: GPL-3.0-only
"""`POST /embed`: inputs to vectors."""

from __future__ import annotations

from collections.abc import Iterable

from quart import Response

from modeld.dialects import native
from modeld.http.body import read_json
from modeld.http.edge import Edge, current_request
from modeld.http.routes.generation import gather
from modeld.http.routes.table import Route
from modeld.runtime.ticket import Ticket


class EmbedRoute:
    """`/embed`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def table(self) -> Iterable[Route]:
        """Return the route."""
        return (("/embed", self.embed, ["POST"]),)

    async def embed(self) -> Response:
        """Return a vector for each input. They become text as they come, so others hardly wait for that."""
        request = current_request()
        command = native.parse_embed(await read_json(request))

        def renderer_for(ticket: Ticket) -> native.EmbedRenderer:
            return native.EmbedRenderer(model=ticket.model.id, request_id=request.id)

        return await gather(self._edge, request, command.order, renderer_for)
