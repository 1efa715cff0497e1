# SPDX-License-Identifier: GPL-3.0-only
"""`POST /infer`: one request for text, from its body to its stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quart import Response

from modeld.dialects import native
from modeld.dialects.common.streaming import NDJSON_TYPE
from modeld.domain.request import Order
from modeld.domain.request_events import Detokenized, Failed, Finished, Templated, Tokenized
from modeld.http.context import Edge, current_request
from modeld.http.endpoint import Route
from modeld.http.generation import gather, generate, submit
from modeld.http.replies import json_reply
from modeld.http.streaming import read_json
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


# ----------------------------------------------------------------------
# `POST /embed`: inputs to vectors.


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


# ----------------------------------------------------------------------
# `POST /tokenize`, `/detokenize`, `/apply-template`: answered without a slot, also beside long streams.


class VocabularyRoutes:
    """What only needs a model's vocabulary and template."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def table(self) -> Iterable[Route]:
        """Return the routes."""
        return (
            ("/tokenize", self.tokenize, ["POST"]),
            ("/detokenize", self.detokenize, ["POST"]),
            ("/apply-template", self.apply_template, ["POST"]),
        )

    async def tokenize(self) -> Response:
        """Return the tokens of a text."""
        return await self._answer(native.parse_tokenize)

    async def detokenize(self) -> Response:
        """Return the text of tokens."""
        return await self._answer(native.parse_detokenize)

    async def apply_template(self) -> Response:
        """Return the prompt that the model's chat template makes of messages."""
        return await self._answer(native.parse_template)

    async def _answer(self, parse: Callable[[bytes], Order]) -> Response:
        request = current_request()
        order = parse(await read_json(request))
        ticket = await submit(self._edge, request, order)
        request.inbound.work_began()
        return json_reply(await _body(ticket))


async def _body(ticket: Ticket) -> bytes:
    """Wait for the answer, and return it as JSON. Raises: the error it failed with."""
    body = b""
    while True:
        for event in await ticket.next():
            match event:
                case Tokenized() | Detokenized() | Templated():
                    body = native.aside_body(event)
                case Failed(problem=problem):
                    raise problem.as_error()
                case Finished():
                    return body
                case _:
                    pass
