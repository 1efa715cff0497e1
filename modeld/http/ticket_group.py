# SPDX-License-Identifier: GPL-3.0-only
"""Read the tickets of several choices as one: each event comes with the index of its ticket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import trio

from modeld.domain.request_events import Event, Failed, Finished
from modeld.runtime.ticket import Ticket

IndexedEvent = tuple[int, Event]
"""The index of a ticket, and one of its events."""


class TicketGroup:
    """What a `Ticket` is to its reader, for several of them. There is one reader."""

    def __init__(self, tickets: Sequence[Ticket]) -> None:
        self._tickets = tickets
        self._open = dict(enumerate(tickets))
        self._found: list[IndexedEvent] = []

    @property
    def notices(self) -> tuple[str, ...]:
        """What of the request is not kept, by any of its tickets."""
        return tuple(notice for ticket in self._tickets for notice in ticket.notices)

    async def next(self) -> tuple[IndexedEvent, ...]:
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

    async def drain(self, take: Callable[[Sequence[IndexedEvent]], bool]) -> None:
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
        self,
        index: int,
        ticket: Ticket,
        take: Callable[[Sequence[IndexedEvent]], bool],
        done: trio.CancelScope,
    ) -> None:
        await ticket.drain(partial(self._give, index, take))
        done.cancel()

    def _give(
        self, index: int, take: Callable[[Sequence[IndexedEvent]], bool], events: Sequence[Event]
    ) -> bool:
        return take(self._marked(index, events))

    def _marked(self, index: int, events: Sequence[Event]) -> list[IndexedEvent]:
        """Return the events with their index; note when they are the last of their ticket."""
        if isinstance(events[-1], Finished | Failed):
            self._open = {at: ticket for at, ticket in self._open.items() if at != index}
        return [(index, event) for event in events]
