# SPDX-License-Identifier: GPL-3.0-only
"""One request for several choices: each is a ticket of its own, and they are answered together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quart import Response

from modeld.core.client import Client, visible
from modeld.core.events import Failed, Started
from modeld.core.models import ModelSpec
from modeld.core.request import Order
from modeld.dialects.openai import SSE_TYPE, Asked, ChoiceRenderer, as_seen
from modeld.dialects.renderer import shows_text
from modeld.errors import InvalidRequest
from modeld.http.body import StreamBody
from modeld.http.chorus import Chorus, Voice
from modeld.http.edge import Edge, EdgeRequest
from modeld.http.infer_log import InferLog, wanted_level
from modeld.http.reply import json_reply, stream_reply
from modeld.http.routes.generation import count_refusal, no_answer
from modeld.http.routes.submission import submit


async def answer(
    edge: Edge, request: EdgeRequest, asked: Asked, renderer_for: Callable[[ModelSpec], ChoiceRenderer]
) -> Response:
    """Stream the choices, or return them whole. The status waits for the first token or the first failure.

    All choices are submitted at once. If one of them is refused, all are given up.

    Raises: ModeldError for a refusal that is to be told in the dialect's envelope.
    """
    level = wanted_level(request)
    _check_room(edge, request.client, asked.orders)
    tickets = [await submit(edge, request, order) for order in asked.orders]
    request.inbound.work_began()
    chorus = Chorus(tickets)
    model = tickets[0].model
    log = InferLog(level, request_id=request.id, model=model.id)
    renderer = renderer_for(model)
    # Called last to first: the tickets are closed before their end is told.
    request.cleanup.callback(lambda: log.ended(renderer.last))
    request.cleanup.callback(chorus.close)
    log.began(stream=asked.stream)
    if not asked.stream:
        return await _whole(chorus, renderer)
    first = await _until_text(chorus)
    seen = as_seen(first[0][1])
    if isinstance(seen, Failed):
        renderer.last = seen
        raise seen.problem.as_error()
    request.cleanup.callback(lambda: count_refusal(edge, renderer.last))
    body = StreamBody(
        chorus, renderer, first, log=log, keep_alive_s=edge.limits.stream_keep_alive_s, at_once=False
    )
    return stream_reply(body, SSE_TYPE)


async def _whole(chorus: Chorus, renderer: ChoiceRenderer) -> Response:
    while renderer.last is None:
        whole = renderer.take(await chorus.next())
        if whole is not None:
            return json_reply(whole)
    if isinstance(renderer.last, Failed):
        raise renderer.last.problem.as_error()
    raise no_answer()


async def _until_text(chorus: Chorus) -> Sequence[Voice]:
    """Wait for what decides the status, and return it with all that came along; waiting is not told.

    A failure comes first: then there is no stream.
    """
    started: list[Voice] = []
    while True:
        events = await chorus.next()
        for at, (index, event) in enumerate(events):
            if shows_text(event):
                return events[at:] if isinstance(as_seen(event), Failed) else [*started, *events[at:]]
            if isinstance(event, Started):
                started.append((index, event))


def _check_room(edge: Edge, client: Client, orders: Sequence[Order]) -> None:
    """Refuse what would always be refused for a full queue. Raises: InvalidRequest with the numbers."""
    spec = visible(edge.backend.catalog, client).find(orders[0].model)
    if spec is None or len(orders) == 1:
        return
    depth = edge.settings.max_queue_depth if spec.max_queue_depth is None else spec.max_queue_depth
    most = spec.options.slots + depth
    if len(orders) > most:
        raise InvalidRequest(
            f"`n` asks for {len(orders)} choices at once; {spec.id} has {spec.options.slots} slots and room "
            f"for {depth} to wait, so {most} are the most",
            details={"choices": len(orders), "slots": spec.options.slots, "max_queue_depth": depth},
        )
