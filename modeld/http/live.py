# SPDX-License-Identifier: GPL-3.0-only
"""The body of `GET /events`: what happens, as it happens, until the reader or the daemon leaves."""

from __future__ import annotations

from collections.abc import Callable

import trio

from modeld.core.fleet_events import FleetEvent
from modeld.dialects.native import Show, shown
from modeld.http.body import Streamed
from modeld.runtime.event_log import Reader

GATHER_S = 0.05
"""After a write, events are gathered for so long: a busy daemon writes some 20 times a second to a reader."""


class LiveBody(Streamed):
    """Events of one reader. Nothing is kept for it here: a slow one only reads later."""

    def __init__(
        self,
        reader: Reader,
        *,
        wanted: Callable[[FleetEvent], bool],
        show: Show,
        begin: bytes,
        still_here: bytes,
        keep_alive_s: float,
    ) -> None:
        self._reader = reader
        self._wanted = wanted
        self._show = show
        self._begin = begin
        self._still_here = still_here
        self._keep_alive_s = keep_alive_s
        self._ended = False
        self._not_before = 0.0

    @property
    def ended(self) -> bool:
        """Whether the last part was given out."""
        return self._ended

    def close(self) -> None:
        """Let the reader go."""
        self._reader.close()

    async def __anext__(self) -> bytes:
        """Return what is to be written next: events, or a sign of life after a silent span."""
        if self._ended:
            raise StopAsyncIteration
        begin, self._begin = self._begin, b""
        if begin:
            return begin
        data = b""
        with trio.move_on_after(self._keep_alive_s) as silence:
            data = await self._events()
        if silence.cancelled_caught:
            return self._still_here
        self._not_before = trio.current_time() + GATHER_S
        return data

    async def _events(self) -> bytes:
        """Wait for events that are wanted. Nothing: there will be none."""
        while True:
            await trio.sleep_until(self._not_before)
            events = await self._reader.next()
            if not events:
                self._ended = True
                return b""
            data = shown(events, self._wanted, self._show)
            if data:
                return data
            self._not_before = trio.current_time() + GATHER_S
