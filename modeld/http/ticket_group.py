# SPDX-License-Identifier: GPL-3.0-only
"""One request for several choices: each is a ticket of its own, and they are answered together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import trio
from quart import Response

from modeld.dialects.common.streaming import starts_response
from modeld.dialects.openai import SSE_TYPE, ChoiceRenderer, ParsedRequest, effective_end
from modeld.domain.model import ModelSpec
from modeld.domain.request import Order
from modeld.domain.request_events import Event, Failed, Finished, Started
from modeld.errors import InvalidRequest
from modeld.http.context import AppContext, HttpRequest
from modeld.http.generation import count_refusal, no_answer, submit_request
from modeld.http.replies import json_reply, stream_reply
from modeld.http.request_log import InferenceLog, wanted_level
from modeld.http.streaming import StreamBody
from modeld.quotas.client import Client, visible_models
from modeld.runtime.ticket import Ticket

# ----------------------------------------------------------------------
# Several tickets of one request, read as one: each event comes with the index of its ticket.

Voice = tuple[int, Event]
"""The index of a ticket, and what it lives through."""


class TicketGroup:
    """What a `Ticket` is to its reader, for several of them. There is one reader."""

    def __init__(self, tickets: Sequence[Ticket]) -> None:
        self._tickets = tickets
        self._open = dict(enumerate(tickets))
        self._found: list[Voice] = []

    async def next(self) -> tuple[Voice, ...]:
        """Wait until there is an event of any ticket, and take what there is. Cancellation loses none.

        Do not call it again after the last event of all tickets.
        """
        if len(self._tickets) == 1:
            return tuple((0, event) for event in await self._tickets[0].next())
        if self._found:
            await trio.lowlevel.checkpoint()
        else:
            async with trio.open_nursery() as nursery:
                for index, ticket in self._open.items():
                    nursery.start_soon(self._read, index, ticket, nursery.cancel_scope)
        found, self._found = tuple(self._found), []
        return found

    async def drain(self, take: Callable[[Sequence[Voice]], bool]) -> None:
        """Give all events to `take`, in the turn of whoever puts them, until it returns False."""
        if len(self._tickets) == 1:
            await self._tickets[0].drain(lambda events: take([(0, event) for event in events]))
            return
        if self._found:
            await trio.lowlevel.checkpoint()
            found, self._found = self._found, []
            if not take(found):
                return
        async with trio.open_nursery() as nursery:
            for index, ticket in self._open.items():
                nursery.start_soon(self._drain, index, ticket, take, nursery.cancel_scope)

    def close(self) -> None:
        """Say that nobody reads any more. Idempotent, never waits."""
        for ticket in self._tickets:
            ticket.close()

    async def _read(self, index: int, ticket: Ticket, done: trio.CancelScope) -> None:
        self._found += self._marked(index, await ticket.next())
        done.cancel()

    async def _drain(
        self, index: int, ticket: Ticket, take: Callable[[Sequence[Voice]], bool], done: trio.CancelScope
    ) -> None:
        await ticket.drain(partial(self._give, index, take))
        done.cancel()

    def _give(self, index: int, take: Callable[[Sequence[Voice]], bool], events: Sequence[Event]) -> bool:
        return take(self._marked(index, events))

    def _marked(self, index: int, events: Sequence[Event]) -> list[Voice]:
        """Return the events with their index; note when they are the last of their ticket."""
        if isinstance(events[-1], Finished | Failed):
            self._open = {at: ticket for at, ticket in self._open.items() if at != index}
        return [(index, event) for event in events]


# ----------------------------------------------------------------------


async def answer(
    context: AppContext,
    request: HttpRequest,
    asked: ParsedRequest,
    renderer_for: Callable[[ModelSpec], ChoiceRenderer],
) -> Response:
    """Stream the choices, or return them whole. The status waits for the first token or the first failure.

    All choices are submitted at once. If one of them is refused, all are given up.

    Raises: ModeldError for a refusal that is to be told in the dialect's envelope.
    """
    level = wanted_level(request)
    _check_room(context, request.client, asked.orders)
    tickets = [await submit_request(context, request, order) for order in asked.orders]
    request.request_stream.cancel_on_disconnect()
    group = TicketGroup(tickets)
    model = tickets[0].model
    log = InferenceLog(level, request_id=request.id, model=model.id)
    renderer = renderer_for(model)
    # Called last to first: the tickets are closed before their end is told.
    request.cleanup.callback(lambda: log.ended(renderer.last))
    request.cleanup.callback(group.close)
    log.began(stream=asked.stream)
    if not asked.stream:
        return await _whole(group, renderer)
    first = await _until_text(group)
    seen = effective_end(first[0][1])
    if isinstance(seen, Failed):
        renderer.last = seen
        raise seen.problem.as_error()
    request.cleanup.callback(lambda: count_refusal(context, renderer.last))
    body = StreamBody(
        group, renderer, first, log=log, keep_alive_s=context.limits.stream_keep_alive_s, at_once=False
    )
    return stream_reply(body, SSE_TYPE)


async def _whole(group: TicketGroup, renderer: ChoiceRenderer) -> Response:
    while renderer.last is None:
        whole = renderer.take(await group.next())
        if whole is not None:
            return json_reply(whole)
    if isinstance(renderer.last, Failed):
        raise renderer.last.problem.as_error()
    raise no_answer()


async def _until_text(group: TicketGroup) -> Sequence[Voice]:
    """Wait for what decides the status, and return it with all that came along; waiting is not told.

    A failure comes first: then there is no stream.
    """
    started: list[Voice] = []
    while True:
        events = await group.next()
        for at, (index, event) in enumerate(events):
            if starts_response(event):
                return events[at:] if isinstance(effective_end(event), Failed) else [*started, *events[at:]]
            if isinstance(event, Started):
                started.append((index, event))


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
