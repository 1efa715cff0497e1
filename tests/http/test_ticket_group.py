# SPDX-License-Identifier: GPL-3.0-only
"""Several tickets read as one: nothing is lost, nothing comes twice, and each event knows its ticket."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing
from support.backend import TINY, finish

from modeld.domain.request import GenerateRequest, Order
from modeld.domain.request_events import Delta, Finished
from modeld.http.ticket_group import IndexedEvent, TicketGroup
from modeld.runtime.ticket import Ticket


def tickets(count: int, closed: list[int] | None = None) -> list[Ticket]:
    return [
        Ticket(
            ticket_id=number,
            request_id="r",
            order=Order(request=GenerateRequest(prompt="x")),
            model=TINY,
            max_backlog_bytes=1 << 20,
            on_close=lambda ticket: None if closed is None else closed.append(ticket.id),
        )
        for number in range(count)
    ]


def texts(voices: Sequence[IndexedEvent]) -> list[tuple[int, str]]:
    return [(index, event.text) for index, event in voices if isinstance(event, Delta)]


@pytest.mark.parametrize("count", [1, 3])
async def test_events_come_with_the_index_of_their_ticket(count: int) -> None:
    """Whichever ticket has one, it comes; a ticket that ended is not waited for."""
    group = tickets(count)
    ticket_group = TicketGroup(group)
    seen: list[IndexedEvent] = []
    for number in reversed(range(count)):
        group[number].put(Delta(text=f"a{number}"))
        seen += await ticket_group.next()
        group[number].put(Delta(text=f"b{number}"))
        finish(group[number])
        while not any(index == number and isinstance(event, Finished) for index, event in seen):
            seen += await ticket_group.next()
    expected = [(number, f"{letter}{number}") for number in reversed(range(count)) for letter in "ab"]
    assert texts(seen) == expected


@pytest.mark.parametrize("count", [1, 3])
async def test_cancellation_loses_no_event(count: int) -> None:
    """What was put while a reader was cancelled is there for the next one."""
    group = tickets(count)
    ticket_group = TicketGroup(group)
    seen: list[IndexedEvent] = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                seen.extend(await ticket_group.next())

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            for ticket in group:
                ticket.put(Delta(text="x"))
            scope.cancel()
    while len(seen) < count:
        seen += await ticket_group.next()
    assert sorted(texts(seen)) == [(number, "x") for number in range(count)]


@pytest.mark.parametrize("count", [1, 3])
async def test_events_pour_until_the_taker_has_enough(count: int) -> None:
    """In the turn of whoever puts them; what comes after False waits for the next call."""
    group = tickets(count)
    ticket_group = TicketGroup(group)
    poured: list[IndexedEvent] = []

    def take(voices: Sequence[IndexedEvent]) -> bool:
        poured.extend(voices)
        return len(poured) < 2 * count

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticket_group.drain, take)
        await trio.testing.wait_all_tasks_blocked()
        for letter in "ab":
            for ticket in group:
                ticket.put(Delta(text=letter))
        assert len(poured) == 2 * count
    for ticket in group:
        finish(ticket)
    seen: list[IndexedEvent] = []
    while len(seen) < count:
        seen += await ticket_group.next()
    assert texts(poured) == [(number, letter) for letter in "ab" for number in range(count)]
    assert all(isinstance(event, Finished) for _, event in seen)


async def test_closing_closes_all() -> None:
    """Each ticket, once."""
    closed: list[int] = []
    ticket_group = TicketGroup(tickets(3, closed))
    ticket_group.close()
    ticket_group.close()
    assert closed == [0, 1, 2]
    await trio.lowlevel.checkpoint()
