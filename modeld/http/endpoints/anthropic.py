# SPDX-License-Identifier: GPL-3.0-only
"""The paths of Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Iterable

from quart import Response

from modeld.dialects import anthropic
from modeld.dialects.common.streaming import SSE_TYPE
from modeld.http.context import Edge, current_request
from modeld.http.endpoint import Route
from modeld.http.generation import gather, generate
from modeld.http.streaming import read_json
from modeld.runtime.ticket import Ticket


class AnthropicRoutes:
    """`/v1/messages` and `/v1/messages/count_tokens`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def table(self) -> Iterable[Route]:
        """Return the routes."""
        return (
            ("/v1/messages", self.messages, ["POST"]),
            ("/v1/messages/count_tokens", self.count, ["POST"]),
        )

    async def messages(self) -> Response:
        """Return the next message of a conversation. Versions and betas that are named change nothing."""
        request = current_request()
        asked = anthropic.parse_messages(await read_json(request))

        def renderer_for(ticket: Ticket) -> anthropic.MessageRenderer:
            return anthropic.MessageRenderer(asked, model=ticket.model.id, request_id=request.id)

        stream = SSE_TYPE if asked.stream else None
        response = await generate(self._edge, request, asked.order, renderer_for, stream=stream)
        response.headers["request-id"] = request.id
        return response

    async def count(self) -> Response:
        """Return how many tokens a message would have as a prompt."""
        request = current_request()
        order = anthropic.parse_count(await read_json(request))
        response = await gather(self._edge, request, order, lambda _: anthropic.CountRenderer())
        response.headers["request-id"] = request.id
        return response
