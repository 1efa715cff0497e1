# SPDX-License-Identifier: GPL-3.0-only
"""`POST /embed`: inputs to vectors."""

from __future__ import annotations

from collections.abc import Iterable

from quart import Response

from modeld.core.events import Failed
from modeld.dialects import native
from modeld.http.body import read_json
from modeld.http.edge import Edge, current_request
from modeld.http.infer_log import InferLog, wanted_level
from modeld.http.reply import json_reply
from modeld.http.routes.submission import submit
from modeld.http.routes.table import Route


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
        body = await read_json(request)
        level = wanted_level(request)
        command = native.parse_embed(body)
        ticket = await submit(self._edge, request, command.order)
        request.work_began.set()
        log = InferLog(level, request_id=request.id, model=ticket.model.id)
        renderer = native.EmbedRenderer(model=ticket.model.id, request_id=request.id)
        request.cleanup.callback(lambda: log.ended(renderer.last))
        request.cleanup.callback(ticket.close)
        log.began(stream=False)
        while (answer := renderer.take(await ticket.next())) is None:
            if isinstance(renderer.last, Failed):
                raise renderer.last.problem.as_error()
        return json_reply(answer)
