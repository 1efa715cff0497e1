# SPDX-License-Identifier: GPL-3.0-only
"""A client of `GET /events` that takes as much as the test wants, and may leave at any time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
import trio

PATIENCE_S = 60.0
NDJSON = "application/x-ndjson"


class EventClient:
    """One stream of lines of JSON.

    Attributes:
      status, headers: of the answer.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ended = False
        self._h11 = h11.Connection(h11.CLIENT)
        self._data = b""

    async def ask(self, target: str, headers: dict[str, str]) -> None:
        """Send the request and read the head of the answer."""
        names = [("Host", "localhost"), *headers.items()]
        sent = self._h11.send(h11.Request(method="GET", target=target, headers=names))
        assert sent is not None
        await self.stream.send_all(sent)
        self._h11.send(h11.EndOfMessage())
        while not self.status:
            await self._more()

    async def take(self, count: int) -> list[dict[str, Any]]:
        """Return the next events."""
        return [await self.next() for _ in range(count)]

    async def next(self) -> dict[str, Any]:
        """Return the next event; empty lines are skipped."""
        while True:
            line = await self._line()
            assert line is not None, "the stream ended"
            if line:
                return json.loads(line)

    async def rest(self) -> list[dict[str, Any]]:
        """Return all events up to the clean end of the stream."""
        found: list[dict[str, Any]] = []
        while (line := await self._line()) is not None:
            if line:
                found.append(json.loads(line))
        return found

    async def until(self, kind: str, **wanted: object) -> dict[str, Any]:
        """Take events up to one of this kind with these values, and return it."""
        while True:
            event = await self.next()
            if event["kind"] == kind and all(event.get(key) == value for key, value in wanted.items()):
                return event

    async def _line(self) -> bytes | None:
        while b"\n" not in self._data:
            if self.ended:
                return None
            await self._more()
        line, _, self._data = self._data.partition(b"\n")
        return line

    async def _more(self) -> None:
        match event := self._h11.next_event():
            case h11.NEED_DATA:
                with trio.fail_after(PATIENCE_S):
                    self._h11.receive_data(bytes(await self.stream.receive_some(65536)))
            case h11.Response():
                self.status = event.status_code
                self.headers = {name.decode(): value.decode() for name, value in event.headers}
            case h11.Data():
                self._data += event.data
            case h11.EndOfMessage():
                self.ended = True
            case _:
                raise AssertionError(f"the stream broke off: {event!r}")


@asynccontextmanager
async def event_client(port: int, target: str = "/events", **headers: str) -> AsyncIterator[EventClient]:
    """Read along while the block runs, as lines of JSON unless the headers say otherwise."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        reader = EventClient(stream)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        await reader.ask(target, {"Accept": NDJSON, **names})
        yield reader
