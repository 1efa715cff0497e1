# SPDX-License-Identifier: GPL-3.0-only
"""The paths of Ollama: `/api/...`, and `/`, which its clients ask whether anybody is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from quart import Response

from modeld.dialects import ollama
from modeld.dialects.common.streaming import NDJSON_TYPE, line
from modeld.domain.instance_state import State
from modeld.domain.model import Catalog, ModelSpec
from modeld.domain.request_events import Finished, FinishReason, Stats, Usage
from modeld.errors import ModelNotFound, NotFound
from modeld.http.context import Edge, EdgeRequest, current_request
from modeld.http.endpoint import Route
from modeld.http.generation import gather, generate
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.replies import json_reply, text_reply
from modeld.http.streaming import read_json
from modeld.quotas.client import visible
from modeld.runtime.ticket import Ticket

_HOW_TO = "put a GGUF file into models_dir, or take it away: modeld sees that within seconds"
_GONE = frozenset({State.STOPPED, State.ERROR})


class OllamaRoutes:
    """`/api/...` and `/`."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._backend = edge.backend

    def table(self) -> Iterable[Route]:
        """Return the routes."""
        return (
            ("/", self.root, ["GET"]),
            ("/api/version", self.version, ["GET"]),
            ("/api/tags", self.tags, ["GET"]),
            ("/api/ps", self.running, ["GET"]),
            ("/api/show", self.show, ["POST"]),
            ("/api/generate", self.generate, ["POST"]),
            ("/api/chat", self.chat, ["POST"]),
            ("/api/embed", self.embed, ["POST"]),
            ("/api/embeddings", self.embeddings, ["POST"]),
            ("/api/pull", self.pull, ["POST"]),
            ("/api/push", self.not_served, ["POST"]),
            ("/api/create", self.not_served, ["POST"]),
            ("/api/copy", self.not_served, ["POST"]),
            ("/api/delete", self.not_served, ["DELETE"]),
        )

    async def root(self) -> Response:
        """Say that somebody is there."""
        return text_reply(
            "modeld is running; clients of Ollama find what they know, and /docs tells the rest"
        )

    async def version(self) -> Response:
        """Return the version of the API, and modeld's own."""
        return json_reply(ollama.OllamaVersion())

    async def tags(self) -> Response:
        """List the models, with files that just came and without those that just went."""
        await self._backend.refresh_catalog(CATALOG_MAX_AGE_S)
        return json_reply(ollama.tags(self._catalog()))

    async def running(self) -> Response:
        """List the models in memory."""
        return json_reply(ollama.running(self._catalog(), self._backend.status()))

    async def show(self) -> Response:
        """Tell of one model; wakes none."""
        name = ollama.parse_show(await _body(current_request()))
        spec = await self._spec(name)
        return json_reply(ollama.show(spec, await self._backend.chat_template(spec)))

    async def generate(self) -> Response:
        """Return text that follows a prompt."""
        return await self._text(ollama.parse_generate)

    async def chat(self) -> Response:
        """Return the next message of a conversation."""
        return await self._text(ollama.parse_chat)

    async def embed(self) -> Response:
        """Return a vector for each input."""
        return await self._vectors(ollama.parse_embed)

    async def embeddings(self) -> Response:
        """Return the vector of one prompt."""
        return await self._vectors(ollama.parse_embeddings)

    async def pull(self) -> Response:
        """Say that a model is here, which is all that clients want to know before they use it."""
        name, stream = ollama.parse_pull(await _body(current_request()))
        try:
            await self._spec(name)
        except ModelNotFound:
            raise ModelNotFound(f'no model is called "{name}", and modeld fetches none: {_HOW_TO}') from None
        done = ollama.OllamaProgress("success")
        return Response(line(done), content_type=NDJSON_TYPE) if stream else json_reply(done)

    async def not_served(self) -> Response:
        """Refuse what would change the models."""
        path = current_request().path
        raise NotFound(f"{path} is not served: {_HOW_TO}")

    async def _text(self, parse: Callable[[bytes], ollama.Asked]) -> Response:
        request = current_request()
        asked = parse(await _body(request))
        spec = await self._spec(asked.terms.model)
        created_at = ollama.rfc3339(time.time())

        def renderer_of(spec: ModelSpec) -> ollama.TextRenderer:
            return ollama.TextRenderer(asked, spec, created_at=created_at, request_id=request.id)

        if asked.unloads and self._backend.model_states().get(spec.id, State.STOPPED) in _GONE:
            nothing = Finished(reason=FinishReason.STOP, usage=Usage(), stats=Stats())
            return json_reply(renderer_of(spec).take([nothing]))
        stream = NDJSON_TYPE if asked.stream else None
        order = ollama.order_of(asked, spec)
        return await generate(
            self._edge, request, order, lambda ticket: renderer_of(ticket.model), stream=stream
        )

    async def _vectors(self, parse: Callable[[bytes], ollama.AskedVectors]) -> Response:
        request = current_request()
        asked = parse(await _body(request))
        spec = await self._spec(asked.terms.model)

        def renderer_for(ticket: Ticket) -> ollama.VectorRenderer:
            return ollama.VectorRenderer(asked, ticket.model)

        return await gather(self._edge, request, asked.order(spec), renderer_for)

    def _catalog(self) -> Catalog:
        """Return the models that this client may know of."""
        return visible(self._backend.catalog, current_request().client)

    async def _spec(self, name: str | None) -> ModelSpec:
        """Return the model of a name; one that is not known may have been put there a moment ago."""
        spec = ollama.find(self._catalog(), name)
        if spec is None:
            await self._backend.refresh_catalog(CATALOG_MAX_AGE_S)
            spec = ollama.find(self._catalog(), name)
        if spec is None:
            called = "there are no models" if name is None else f'no model is called "{name[:200]}"'
            raise ModelNotFound(f"{called}; see GET /api/tags")
        return spec


async def _body(request: EdgeRequest) -> bytes:
    """Return the body. Ollama's own examples send JSON without saying so; no page of somebody else may."""
    return await read_json(request, undeclared=request.sent(b"origin", None) is None)
