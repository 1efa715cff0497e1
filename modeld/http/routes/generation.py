# SPDX-License-Identifier: GPL-3.0-only
"""One request for text, from its order to its stream, in whatever dialect it came."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from quart import Response

from modeld.core.events import Event, Failed, Last, Started
from modeld.core.request import Order
from modeld.dialects.renderer import Gatherer, Renderer, shows_text
from modeld.errors import InternalError
from modeld.http.body import StreamBody
from modeld.http.edge import Edge, EdgeRequest
from modeld.http.errors import BACKPRESSURE, error_headers
from modeld.http.infer_log import InferLog, wanted_level
from modeld.http.reply import json_reply, stream_reply
from modeld.http.routes.submission import submit
from modeld.runtime.ticket import Ticket

_Writer = TypeVar("_Writer", bound=Gatherer)


async def generate(
    edge: Edge,
    request: EdgeRequest,
    order: Order,
    renderer_for: Callable[[Ticket], Renderer],
    *,
    stream: str | None,
    at_once: bool = False,
) -> Response:
    """Stream text, or return it whole. The status waits for the first token or the first failure.

    Args:
      edge: what routes have at hand.
      request: the one that is answered.
      order: what it asks for.
      renderer_for: makes the renderer, once the request has its ticket.
      stream: content type of the stream; None returns one JSON value.
      at_once: the stream begins before there is a token, so every refusal after it is in-band.

    Raises: ModeldError for a refusal that is to be told in the dialect's envelope.
    """
    ticket, renderer, log = await _begin(edge, request, order, renderer_for, stream=stream is not None)
    if stream is None:
        return await _whole(edge, ticket, renderer)
    first = () if at_once else await _until_text(ticket)
    if first and isinstance(first[0], Failed):
        renderer.last = first[0]
        raise first[0].problem.as_error()
    request.cleanup.callback(lambda: count_refusal(edge, renderer.last))
    body = StreamBody(
        ticket, renderer, first, log=log, keep_alive_s=edge.limits.stream_keep_alive_s, at_once=at_once
    )
    return stream_reply(body, stream)


async def gather(
    edge: Edge, request: EdgeRequest, order: Order, renderer_for: Callable[[Ticket], Gatherer]
) -> Response:
    """Return what is never streamed, such as vectors. Raises: ModeldError for a refusal."""
    ticket, renderer, _ = await _begin(edge, request, order, renderer_for, stream=False)
    return await _whole(edge, ticket, renderer)


async def _begin(
    edge: Edge, request: EdgeRequest, order: Order, renderer_for: Callable[[Ticket], _Writer], *, stream: bool
) -> tuple[Ticket, _Writer, InferLog]:
    """Submit the order. With the request end ticket and log, whatever becomes of it."""
    level = wanted_level(request)
    ticket = await submit(edge, request, order)
    request.inbound.work_began()
    log = InferLog(level, request_id=request.id, model=ticket.model.id)
    renderer = renderer_for(ticket)
    # Called last to first: the ticket is closed before its end is told.
    request.cleanup.callback(lambda: log.ended(renderer.last))
    request.cleanup.callback(ticket.close)
    log.began(stream=stream)
    return ticket, renderer, log


async def _whole(edge: Edge, ticket: Ticket, renderer: Gatherer) -> Response:
    answer = None
    while renderer.last is None:
        answer = renderer.take(await ticket.next())
    if not isinstance(renderer.last, Failed):
        if answer is None:
            raise no_answer()
        return json_reply(answer)
    problem = renderer.last.problem
    if answer is None:
        raise problem.as_error()
    count_refusal(edge, renderer.last)
    response = json_reply(answer, problem.status)
    response.headers.update(error_headers(problem))
    return response


def no_answer() -> InternalError:
    """Return the error for a renderer that has no answer when its request has ended."""
    return InternalError("modeld has no answer to a request that ended; this is a defect of modeld")


def count_refusal(edge: Edge, last: Last | None) -> None:
    """Count a refusal that does not pass through the app's error handler."""
    if isinstance(last, Failed) and last.problem.status in BACKPRESSURE:
        edge.metrics.http.count_backpressure(last.problem.kind)


async def _until_text(ticket: Ticket) -> tuple[Event, ...]:
    """Wait for what decides the status; return it with all that came along, but what tells of waiting.

    A failure comes first: then there is no stream.
    """
    started: tuple[Event, ...] = ()
    while True:
        events = await ticket.next()
        for at, event in enumerate(events):
            if shows_text(event):
                return events[at:] if isinstance(event, Failed) else started + events[at:]
            if isinstance(event, Started):
                started = (event,)
