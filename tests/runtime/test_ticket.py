# SPDX-License-Identifier: GPL-3.0-only
"""A ticket's mailbox: how its reader gets the events."""

from __future__ import annotations

from collections.abc import Sequence

import trio
from support.backend import TINY, finish
from trio.testing import wait_all_tasks_blocked

from modeld.domain.request import GenerateRequest, Order
from modeld.domain.request_events import Delta, Event, Failed
from modeld.runtime.ticket import Ticket


def make_ticket(max_backlog_bytes: int = 1000) -> Ticket:
    return Ticket(
        ticket_id=1,
        request_id="r",
        order=Order(request=GenerateRequest(prompt="x"), model=None),
        model=TINY,
        max_backlog_bytes=max_backlog_bytes,
        on_close=lambda _: None,
    )


class Reader:
    """Takes events as they are put, until it has had enough."""

    def __init__(self, ticket: Ticket, *, enough: int) -> None:
        self.ticket = ticket
        self.enough = enough
        self.texts: list[str] = []
        self.calls = 0

    def take(self, events: Sequence[Event]) -> bool:
        self.calls += 1
        self.texts += [event.text for event in events if isinstance(event, Delta)]
        return len(self.texts) < self.enough

    async def run(self) -> None:
        await self.ticket.drain(self.take)


async def pouring(nursery: trio.Nursery, enough: int = 100) -> Reader:
    """Return a reader that waits for events of a new ticket in a task of its own."""
    reader = Reader(make_ticket(), enough=enough)
    nursery.start_soon(reader.run)
    await wait_all_tasks_blocked()
    return reader


async def test_events_are_poured_in_the_turn_of_who_puts_them(nursery: trio.Nursery) -> None:
    """What was put is taken when `put` returns, without any task having run."""
    reader = await pouring(nursery)
    reader.ticket.put(Delta("a"))
    assert reader.texts == ["a"]
    reader.ticket.put(Delta("b"))
    assert reader.texts == ["a", "b"]


async def test_what_is_added_is_poured_together(nursery: trio.Nursery) -> None:
    """`add` tells nobody; `flush` gives all of it at once, and nothing twice."""
    reader = await pouring(nursery)
    for text in "abc":
        reader.ticket.add(Delta(text), 0.0)
    assert reader.calls == 0
    reader.ticket.flush()
    reader.ticket.flush()
    assert (reader.calls, reader.texts) == (1, ["a", "b", "c"])


async def test_a_reader_that_has_enough_goes_on_and_misses_nothing() -> None:
    """What comes between two calls of `drain` waits for the second, in order."""
    async with trio.open_nursery() as nursery:
        reader = await pouring(nursery, enough=1)
        reader.ticket.put(Delta("a"))
        reader.ticket.put(Delta("b"))
        assert reader.texts == ["a"]
    reader.enough = 2
    await reader.run()
    assert reader.texts == ["a", "b"]


async def test_a_cancelled_reader_loses_nothing() -> None:
    """After the cancellation events are kept for whoever reads next."""
    async with trio.open_nursery() as nursery:
        reader = await pouring(nursery)
        reader.ticket.put(Delta("a"))
        nursery.cancel_scope.cancel()
    reader.ticket.put(Delta("b"))
    assert reader.texts == ["a"]
    assert await reader.ticket.next() == (Delta("b"),)


async def test_the_last_event_wakes_who_waits_for_the_next() -> None:
    """`next` and `put` are as ever alongside `drain`."""
    ticket = make_ticket()
    found: list[Event] = []

    async def read() -> None:
        found.extend(await ticket.next())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        finish(ticket)
    assert found[-1].reason == "stop"


async def test_a_backlog_is_what_the_reader_has_not_taken() -> None:
    """Poured text counts no more; what waits for a reader that had enough does, up to the limit."""
    async with trio.open_nursery() as nursery:
        ticket = (await pouring(nursery, enough=50)).ticket
        for _ in range(50):
            ticket.put(Delta("x" * 100))
        assert not ticket.ended
    for _ in range(50):
        ticket.put(Delta("x" * 100))
    events = await ticket.next()
    assert isinstance(events[-1], Failed)
    assert len(events) < 10
