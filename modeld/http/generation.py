# SPDX-License-Identifier: GPL-3.0-only
"""One request for text, from its order to its stream, in whatever dialect it came."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from msgspec.structs import replace
from quart import Response

from modeld.dialects.common.streaming import EventRenderer, ResponseBuilder, starts_response
from modeld.domain.catalog import resolve_model
from modeld.domain.request import Order, Tenant
from modeld.domain.request_events import Event, Failed, Last, Started
from modeld.errors import InternalError, ModelNotFound
from modeld.http.context import AppContext, HttpRequest
from modeld.http.errors import BACKPRESSURE, error_headers
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.replies import json_reply, stream_reply
from modeld.http.request_log import InferenceLog, wanted_level
from modeld.http.streaming import StreamBody
from modeld.quotas.client import Client, Scope, visible_models
from modeld.runtime.ticket import Ticket
from modeld.scheduler.admission import token_estimate

# ----------------------------------------------------------------------
# How a route hands its order to the runtime: on the terms of who sends it, and within his limits.


async def submit_request(context: AppContext, request: HttpRequest, order: Order) -> Ticket:
    """Submit; a model that is not known may have been put there a moment ago.

    With the request ends its ticket, whatever the caller does before.

    Raises: ModeldError for what is known at once.
    """
    try:
        return _submitted(context, request, order)
    except ModelNotFound:
        await context.backend.refresh_catalog(CATALOG_MAX_AGE_S)
        return _submitted(context, request, order)


def _submitted(context: AppContext, request: HttpRequest, order: Order) -> Ticket:
    """Ask the limits, submit and count in one go: nobody comes between."""
    client = request.client
    order = with_client_limits(context, client, order)
    context.accounts.check(client)
    ticket = context.backend.submit(order, request_id=request.id)
    request.cleanup.callback(ticket.close)
    visit = context.accounts.begin(client, order.tenant.tokens, ticket.model.id)
    request.cleanup.callback(lambda: visit.end(ticket.usage))
    return ticket


def with_client_limits(context: AppContext, client: Client, order: Order) -> Order:
    """Return the order as this client may give it.

    Raises: ModelNotFound for a model that is there, but not for this client: the same as for one that is not.
    """
    if not client.id:
        return order
    catalog = visible_models(context.backend.catalog, client)
    spec = resolve_model(catalog, order.model)
    window = 0 if spec.facts is None else spec.facts.context_length
    share = spec.options.ctx // spec.options.slots
    tokens = 0 if order.needs_no_slot else token_estimate(order.request, window, share)
    return replace(
        order,
        model=spec.id,
        priority=client.capped(order.priority),
        tenant=Tenant(
            owner=client.id,
            name=client.name,
            may_unload=client.may((Scope.ADMIN,)),
            weight=client.weight,
            tokens=tokens,
        ),
    )


# ----------------------------------------------------------------------

_Writer = TypeVar("_Writer", bound=ResponseBuilder)


async def generate(
    context: AppContext,
    request: HttpRequest,
    order: Order,
    renderer_for: Callable[[Ticket], EventRenderer],
    *,
    stream: str | None,
    at_once: bool = False,
) -> Response:
    """Stream text, or return it whole. The status waits for the first token or the first failure.

    Args:
      context: what routes have at hand.
      request: the one that is answered.
      order: what it asks for.
      renderer_for: makes the renderer, once the request has its ticket.
      stream: content type of the stream; None returns one JSON value.
      at_once: the stream begins before there is a token, so every refusal after it is in-band.

    Raises: ModeldError for a refusal that is to be told in the dialect's envelope.
    """
    ticket, renderer, log = await _begin(context, request, order, renderer_for, stream=stream is not None)
    if stream is None:
        return await _whole(context, ticket, renderer)
    first = () if at_once else await _until_text(ticket)
    if first and isinstance(first[0], Failed):
        renderer.last = first[0]
        raise first[0].problem.as_error()
    request.cleanup.callback(lambda: count_refusal(context, renderer.last))
    body = StreamBody(
        ticket, renderer, first, log=log, keep_alive_s=context.limits.stream_keep_alive_s, at_once=at_once
    )
    return stream_reply(body, stream)


async def gather(
    context: AppContext, request: HttpRequest, order: Order, renderer_for: Callable[[Ticket], ResponseBuilder]
) -> Response:
    """Return what is never streamed, such as vectors. Raises: ModeldError for a refusal."""
    ticket, renderer, _ = await _begin(context, request, order, renderer_for, stream=False)
    return await _whole(context, ticket, renderer)


async def _begin(
    context: AppContext,
    request: HttpRequest,
    order: Order,
    renderer_for: Callable[[Ticket], _Writer],
    *,
    stream: bool,
) -> tuple[Ticket, _Writer, InferenceLog]:
    """Submit the order. With the request end ticket and log, whatever becomes of it."""
    level = wanted_level(request)
    ticket = await submit_request(context, request, order)
    request.request_stream.cancel_on_disconnect()
    log = InferenceLog(level, request_id=request.id, model=ticket.model.id)
    renderer = renderer_for(ticket)
    # Called last to first: the ticket is closed before its end is told.
    request.cleanup.callback(lambda: log.ended(renderer.last))
    request.cleanup.callback(ticket.close)
    log.began(stream=stream)
    return ticket, renderer, log


async def _whole(context: AppContext, ticket: Ticket, renderer: ResponseBuilder) -> Response:
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
    count_refusal(context, renderer.last)
    response = json_reply(answer, problem.status)
    response.headers.update(error_headers(problem))
    return response


def no_answer() -> InternalError:
    """Return the error for a renderer that has no answer when its request has ended."""
    return InternalError("modeld has no answer to a request that ended; this is a defect of modeld")


def count_refusal(context: AppContext, last: Last | None) -> None:
    """Count a refusal that does not pass through the app's error handler."""
    if isinstance(last, Failed) and last.problem.status in BACKPRESSURE:
        context.metrics.http.count_backpressure(last.problem.kind)


async def _until_text(ticket: Ticket) -> tuple[Event, ...]:
    """Wait for what decides the status; return it with all that came along, but what tells of waiting.

    A failure comes first: then there is no stream.
    """
    started: tuple[Event, ...] = ()
    while True:
        events = await ticket.next()
        for at, event in enumerate(events):
            if starts_response(event):
                return events[at:] if isinstance(event, Failed) else started + events[at:]
            if isinstance(event, Started):
                started = (event,)
