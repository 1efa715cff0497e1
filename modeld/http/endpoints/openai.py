# SPDX-License-Identifier: GPL-3.0-only
"""OpenAI's paths: models, chats, completions, responses, embeddings, all below `/v1/`."""

from __future__ import annotations

import time
from collections.abc import Iterable

from quart import Response

from modeld.dialects import anthropic, openai
from modeld.domain.model import ModelSpec
from modeld.errors import ModelNotFound
from modeld.http.context import Edge, current_request
from modeld.http.endpoint import Route
from modeld.http.generation import gather, generate
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.replies import json_reply
from modeld.http.streaming import read_json
from modeld.http.ticket_group import answer
from modeld.quotas.client import visible
from modeld.runtime.ticket import Ticket


class OpenAIRoutes:
    """`/v1/...`, as OpenAI's clients ask for it."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._backend = edge.backend

    def table(self) -> Iterable[Route]:
        """Return the routes."""
        return (
            ("/v1/models", self.models, ["GET"]),
            ("/v1/models/<path:model>", self.model, ["GET"]),
            ("/v1/chat/completions", self.chat, ["POST"]),
            ("/v1/completions", self.complete, ["POST"]),
            ("/v1/embeddings", self.embed, ["POST"]),
            ("/v1/responses", self.respond, ["POST"]),
        )

    async def models(self) -> Response:
        """List the models, with files that just came and without those that just went."""
        await self._backend.refresh_catalog(CATALOG_MAX_AGE_S)
        catalog = visible(self._backend.catalog, current_request().client)
        tell = anthropic.models_list if _is_anthropics() else openai.models_list
        return json_reply(tell(catalog))

    async def model(self, model: str) -> Response:
        """Tell of one model; wakes none."""
        client = current_request().client
        tell = anthropic.one_model if _is_anthropics() else openai.one_model
        try:
            return json_reply(tell(visible(self._backend.catalog, client), model))
        except ModelNotFound:
            await self._backend.refresh_catalog(CATALOG_MAX_AGE_S)
            return json_reply(tell(visible(self._backend.catalog, client), model))

    async def chat(self) -> Response:
        """Answer a conversation."""
        request = current_request()
        asked = openai.parse_chat(await read_json(request))
        created = int(time.time())

        def renderer_for(model: ModelSpec) -> openai.ChatRenderer:
            return openai.ChatRenderer(asked, request_id=request.id, model=model.id, created=created)

        return await answer(self._edge, request, asked, renderer_for)

    async def complete(self) -> Response:
        """Continue texts."""
        request = current_request()
        asked = openai.parse_completion(await read_json(request))
        created = int(time.time())

        def renderer_for(model: ModelSpec) -> openai.CompletionRenderer:
            return openai.CompletionRenderer(asked, request_id=request.id, model=model.id, created=created)

        return await answer(self._edge, request, asked, renderer_for)

    async def respond(self) -> Response:
        """Answer, in the newer form; nothing is kept."""
        request = current_request()
        asked = openai.parse_response(await read_json(request))
        created = int(time.time())

        def renderer_for(ticket: Ticket) -> openai.ResponseRenderer:
            return openai.ResponseRenderer(
                asked, request_id=request.id, model=ticket.model.id, created=created
            )

        stream = openai.SSE_TYPE if asked.stream else None
        return await generate(self._edge, request, asked.order, renderer_for, stream=stream)

    async def embed(self) -> Response:
        """Return a vector for each input."""
        request = current_request()
        asked = openai.parse_embeddings(await read_json(request))

        def renderer_for(ticket: Ticket) -> openai.VectorRenderer:
            return openai.VectorRenderer(asked, model=ticket.model.id)

        return await gather(self._edge, request, asked.order, renderer_for)


def _is_anthropics() -> bool:
    """Whether a client of Anthropic asks, which has the same paths for models."""
    return current_request().sent(b"anthropic-version", None) is not None
