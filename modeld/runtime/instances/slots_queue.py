# SPDX-License-Identifier: GPL-3.0-only
"""The bounded FIFO in front of a model's slots, and the count of free slots."""

from __future__ import annotations

from contextlib import suppress

import trio

from modeld.runtime.ticket import Ticket


class SlotsQueue:
    """Tickets in the order of their grants, each of which comes out when there is a slot for it."""

    def __init__(self, slots: int) -> None:
        """`slots` is how many the model will have; none of them is free yet."""
        # One round of slots waits here; another one passes through it when the model becomes ready.
        self._back, self._front = trio.open_memory_channel[Ticket](2 * slots)
        self._free_slots = trio.Semaphore(0)

    def put(self, ticket: Ticket) -> None:
        """Add a ticket at the back. Raises: trio.WouldBlock when it is full."""
        self._back.send_nowait(ticket)

    async def next(self) -> Ticket:
        """Wait for a slot and then for a ticket; the slot is taken with it.

        Cancellation: may take a slot along; only the end of the instance cancels this.
        """
        # First the slot: so a ticket that waits for one is still in the channel, where `withdraw` finds it.
        await self._free_slots.acquire()
        return await self._front.receive()

    def free(self, slots: int = 1) -> None:
        """Say that so many slots are free (again)."""
        for _ in range(slots):
            self._free_slots.release()

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a ticket out, wherever it is, so that its place is free at once.

        Returns: whether it was in.
        """
        waiting: list[Ticket] = []
        with suppress(trio.WouldBlock, trio.ClosedResourceError):
            while True:
                waiting.append(self._front.receive_nowait())
        for other in waiting:
            if other is not ticket:
                self._back.send_nowait(other)
        return ticket in waiting

    def close(self) -> None:
        """Let nobody in or out any more."""
        self._back.close()
        self._front.close()
