# SPDX-License-Identifier: GPL-3.0-only
"""The paths of llama.cpp's own server that have no native twin."""

from __future__ import annotations

from collections.abc import Iterable

from quart import Response

from modeld.dialects import llamacpp
from modeld.dialects.common.streaming import SSE_TYPE
from modeld.domain.catalog import named
from modeld.domain.model import ModelSpec
from modeld.errors import ModelNotFound
from modeld.http.context import Edge, current_request
from modeld.http.endpoint import Route
from modeld.http.generation import gather, generate
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.replies import json_reply
from modeld.http.streaming import read_json
from modeld.quotas.client import visible
from modeld.runtime.ticket import Ticket


class LlamaCppRoutes:
    """`/health`, `/props`, `/slots`, `/completion`, `/embedding`, `/models/load`, `/models/unload`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._backend = edge.backend

    def table(self) -> Iterable[Route]:
        """Return the routes."""
        return (
            ("/health", self.health, ["GET"]),
            ("/props", self.props, ["GET"]),
            ("/slots", self.slots, ["GET"]),
            ("/completion", self.completion, ["POST"]),
            ("/completions", self.completion, ["POST"]),
            ("/embedding", self.embedding, ["POST"]),
            ("/embeddings", self.embedding, ["POST"]),
            ("/models/load", self.load, ["POST"]),
            ("/models/unload", self.unload, ["POST"]),
        )

    async def health(self) -> Response:
        """Say that it is well, or (503) what is wrong. Models that are not loaded are no illness."""
        reason = self._backend.health()
        if reason is not None:
            return json_reply(llamacpp.unavailable(reason), 503)
        return json_reply(llamacpp.LlamaHealth())

    async def props(self) -> Response:
        """Tell of one model."""
        spec = await self._spec(self._named())
        template = await self._backend.chat_template(spec)
        return json_reply(llamacpp.props(spec, self._backend.status(), template))

    async def slots(self) -> Response:
        """Tell of the slots of one model."""
        found = llamacpp.slots(await self._spec(self._named()), self._backend.status())
        if current_request().args.get("fail_on_no_slot") and all(slot.is_processing for slot in found):
            return json_reply(llamacpp.unavailable(f"none of {len(found)} slots is free"), 503)
        return json_reply(found)

    async def completion(self) -> Response:
        """Return text that follows a prompt."""
        request = current_request()
        asked = llamacpp.parse_completion(await read_json(request))

        def renderer_for(ticket: Ticket) -> llamacpp.CompletionRenderer:
            return llamacpp.CompletionRenderer(asked.request, model=ticket.model.id)

        stream = SSE_TYPE if asked.stream else None
        return await generate(self._edge, request, asked.order, renderer_for, stream=stream)

    async def embedding(self) -> Response:
        """Return a vector for each text."""
        request = current_request()
        order = llamacpp.parse_embedding(await read_json(request))
        return await gather(self._edge, request, order, lambda _: llamacpp.LlamaEmbeddingRenderer())

    async def load(self) -> Response:
        """Begin to load a model; `GET /operations` tells how far it is."""
        request = current_request()
        name = llamacpp.parse_model(await read_json(request))
        self._backend.control.load((await self._spec(name)).id, key=request.client.name)
        return json_reply(llamacpp.LlamaDone())

    async def unload(self) -> Response:
        """Begin to unload a model: its streams may end."""
        request = current_request()
        name = llamacpp.parse_model(await read_json(request))
        self._backend.control.unload((await self._spec(name)).id, key=request.client.name)
        return json_reply(llamacpp.LlamaDone())

    def _named(self) -> str | None:
        return current_request().args.get("model") or None

    async def _spec(self, name: str | None) -> ModelSpec:
        """Return the model of a name; one that is not known may have been put there a moment ago."""
        client = current_request().client
        try:
            return named(visible(self._backend.catalog, client), name)
        except ModelNotFound:
            await self._backend.refresh_catalog(CATALOG_MAX_AGE_S)
            return named(visible(self._backend.catalog, client), name)
