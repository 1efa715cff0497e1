# SPDX-License-Identifier: GPL-3.0-only
"""Submit a request for text, and answer it: as a stream or whole, for one choice or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from msgspec.structs import replace
from quart import Response

from modeld.dialects.common.streaming import EventRenderer, ResponseBuilder, starts_response
from modeld.dialects.openai import SSE_TYPE, ChoiceRenderer, ParsedRequest, effective_end
from modeld.domain.catalog import resolve_model
from modeld.domain.model import ModelSpec
from modeld.domain.request import Order, Tenant
from modeld.domain.request_events import Event, Failed, Last, Started
from modeld.errors import InternalError, InvalidRequest, ModelNotFound
from modeld.http.context import AppContext, HttpRequest
from modeld.http.errors import BACKPRESSURE, error_headers
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.replies import json_reply, notice_headers, stream_reply
from modeld.http.request_log import InferenceLog, wanted_level
from modeld.http.streaming import EventSource, LineRenderer, StreamBody
from modeld.http.ticket_group import TicketGroup
from modeld.quotas.client import Client, Scope, visible_models
from modeld.runtime.ticket import Ticket
from modeld.scheduler.admission import token_estimate

# ----------------------------------------------------------------------
# From a view to the runtime: an order gets what its key allows, and counts against the key's limits.


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
# From a ticket to a response. Several choices are a `TicketGroup`, and go the same way as one ticket.

_Told = TypeVar("_Told")
_Given_contra = TypeVar("_Given_contra", contravariant=True)


class _Builder(Protocol[_Given_contra]):
    """What `dialects.common.streaming.ResponseBuilder` says of answers, for whatever a source gives."""

    last: Last | None

    def take(self, events: Sequence[_Given_contra]) -> bytes | None:
        """Return the whole answer when the last event is among these, else None."""
        ...


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
    ticket = await submit_request(context, request, order)
    renderer = renderer_for(ticket)
    log = _begin(request, ticket, ticket.model, renderer, stream=stream is not None)
    if stream is None:
        return await _whole(context, ticket, renderer)
    return await _streamed(
        context,
        request,
        ticket,
        renderer,
        log=log,
        content_type=stream,
        event_of=lambda event: event,
        at_once=at_once,
    )


async def generate_choices(
    context: AppContext,
    request: HttpRequest,
    parsed: ParsedRequest,
    renderer_for: Callable[[ModelSpec], ChoiceRenderer],
) -> Response:
    """Stream one or several choices, or return them whole, as `generate` does.

    All choices are submitted at once. If one of them is refused, all are given up.

    Raises: ModeldError for a refusal that is to be told in the dialect's envelope.
    """
    _check_room(context, request.client, parsed.orders)
    tickets = [await submit_request(context, request, order) for order in parsed.orders]
    group = TicketGroup(tickets)
    renderer = renderer_for(tickets[0].model)
    log = _begin(request, group, tickets[0].model, renderer, stream=parsed.stream)
    if not parsed.stream:
        return await _whole(context, group, renderer)
    return await _streamed(
        context,
        request,
        group,
        renderer,
        log=log,
        content_type=SSE_TYPE,
        event_of=lambda choice: effective_end(choice[1]),
    )


async def gather(
    context: AppContext, request: HttpRequest, order: Order, renderer_for: Callable[[Ticket], ResponseBuilder]
) -> Response:
    """Return what is never streamed, such as vectors. Raises: ModeldError for a refusal."""
    ticket = await submit_request(context, request, order)
    renderer = renderer_for(ticket)
    _begin(request, ticket, ticket.model, renderer, stream=False)
    return await _whole(context, ticket, renderer)


def _begin(
    request: HttpRequest,
    source: EventSource[_Told],
    model: ModelSpec,
    renderer: _Builder[_Told],
    *,
    stream: bool,
) -> InferenceLog:
    """Watch the client and begin the log; the request ends both and the source, whatever becomes of it."""
    request.request_stream.cancel_on_disconnect()
    log = InferenceLog(wanted_level(request), request_id=request.id, model=model.id)
    # Called last to first: the source is closed before its end is told.
    request.cleanup.callback(lambda: log.ended(renderer.last))
    request.cleanup.callback(source.close)
    log.began(stream=stream)
    return log


async def _streamed(
    context: AppContext,
    request: HttpRequest,
    source: EventSource[_Told],
    renderer: LineRenderer[_Told],
    *,
    log: InferenceLog,
    content_type: str,
    event_of: Callable[[_Told], Event],
    at_once: bool = False,
) -> Response:
    """Return the stream, once its status is known. Raises: the failure that came before any text."""
    first = () if at_once else await _until_text(source, event_of)
    if first and isinstance(failure := event_of(first[0]), Failed):
        renderer.last = failure
        raise failure.problem.as_error()
    request.cleanup.callback(lambda: _count_refusal(context, renderer.last))
    body = StreamBody(
        source, renderer, first, log=log, keep_alive_s=context.limits.stream_keep_alive_s, at_once=at_once
    )
    response = stream_reply(body, content_type)
    response.headers.update(notice_headers(source.notices))
    return response


async def _whole(context: AppContext, source: EventSource[_Told], renderer: _Builder[_Told]) -> Response:
    answer = None
    while renderer.last is None:
        answer = renderer.take(await source.next())
    if not isinstance(renderer.last, Failed):
        if answer is None:
            raise InternalError("modeld has no answer to a request that ended; this is a defect of modeld")
        response = json_reply(answer)
        response.headers.update(notice_headers(source.notices))
        return response
    problem = renderer.last.problem
    if answer is None:
        raise problem.as_error()
    _count_refusal(context, renderer.last)
    response = json_reply(answer, problem.status)
    response.headers.update(error_headers(problem))
    return response


def _count_refusal(context: AppContext, last: Last | None) -> None:
    """Count a refusal that does not pass through the app's error handler."""
    if isinstance(last, Failed) and last.problem.status in BACKPRESSURE:
        context.metrics.http.count_backpressure(last.problem.kind)


async def _until_text(source: EventSource[_Told], event_of: Callable[[_Told], Event]) -> Sequence[_Told]:
    """Wait for what decides the status; return it and what came with it, without queue positions.

    A failure comes first: then there is no stream.
    """
    started: list[_Told] = []
    while True:
        found = await source.next()
        for at, told in enumerate(found):
            event = event_of(told)
            if starts_response(event):
                return found[at:] if isinstance(event, Failed) else [*started, *found[at:]]
            if isinstance(event, Started):
                started.append(told)


def _check_room(context: AppContext, client: Client, orders: Sequence[Order]) -> None:
    """Refuse what would always be refused for a full queue. Raises: InvalidRequest with the numbers."""
    spec = visible_models(context.backend.catalog, client).find(orders[0].model)
    if spec is None or len(orders) == 1:
        return
    depth = context.settings.max_queue_depth if spec.max_queue_depth is None else spec.max_queue_depth
    most = spec.options.slots + depth
    if len(orders) > most:
        raise InvalidRequest(
            f"`n` asks for {len(orders)} choices at once; {spec.id} has {spec.options.slots} slots and room "
            f"for {depth} to wait, so {most} are the most",
            details={"choices": len(orders), "slots": spec.options.slots, "max_queue_depth": depth},
        )
