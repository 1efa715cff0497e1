# SPDX-License-Identifier: GPL-3.0-only
"""`POST /tokenize`, `/detokenize`, `/apply-template`: answered without a slot, also beside long streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quart import Response

from modeld.core.events import Detokenized, Failed, Finished, Templated, Tokenized
from modeld.core.request import Order
from modeld.dialects import native
from modeld.http.body import read_json
from modeld.http.edge import Edge, current_request
from modeld.http.reply import json_reply
from modeld.http.routes.submission import submit
from modeld.http.routes.table import Route
from modeld.runtime.ticket import Ticket


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
