# SPDX-License-Identifier: GPL-3.0-only
"""Read request bodies within their limits, and write streams as events arrive."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import trio
from quart.wrappers.response import ResponseBody

from modeld.dialects.native import Show, shown
from modeld.domain.daemon_events import FleetEvent
from modeld.domain.request_events import Last
from modeld.errors import InternalError, Problem, UnsupportedMediaType
from modeld.http.context import HttpRequest
from modeld.http.request_log import InferenceLog
from modeld.http.server.chunk_writer import ChunkWriter
from modeld.runtime.reporting.event_log import EventReader

AT_ONCE_S = 0.01
"""A stream that begins at once waits this long for something better to begin with than a sign of life."""


async def read_json(request: HttpRequest, *, needed: bool = True, undeclared: bool = False) -> bytes:
    """Return the body of a request that must carry JSON, and say so, unless `undeclared` will do.

    A page of somebody else can have a browser send a body, but not declared as JSON without asking first.

    A body that was declared too large is refused before a byte of it is read, one that turns out to
    be so at the first byte over the limit; a small one of the wrong type is read, so that the
    connection can go on. Where a body is not `needed`, none at all is empty.

    Raises: UnsupportedMediaType; Quart's 413 and 408, which `modeld.http.errors` knows.
    """
    body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    if not needed and not body:
        return b""
    if request.mimetype != "application/json" and not undeclared:
        sent = request.headers.get("Content-Type")
        shown = f'not "{sent[:80]}"' if sent else "but the request names none"
        raise UnsupportedMediaType(f"Content-Type must be application/json, {shown}")
    encoding = request.sent(b"content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaType(f'the body must not be encoded, but Content-Encoding is "{encoding[:80]}"')
    return body


_Told = TypeVar("_Told")
_Given_co = TypeVar("_Given_co", covariant=True)
_Shown_contra = TypeVar("_Shown_contra", contravariant=True)


class EventSource(Protocol[_Given_co]):
    """Where the events of a stream come from: a `runtime.ticket.Ticket`, or a `TicketGroup` of several."""

    @property
    def notices(self) -> Sequence[str]:
        """What of the request is not kept; known with the first text."""
        ...

    async def next(self) -> Sequence[_Given_co]:
        """Wait until there is something, and take all there is."""
        ...

    async def drain(self, take: Callable[[Sequence[_Given_co]], bool]) -> None:
        """Give all there is to `take`, in the turn of whoever puts it, until that returns False."""
        ...

    def close(self) -> None:
        """Say that nobody reads any more."""
        ...


class LineRenderer(Protocol[_Shown_contra]):
    """What `dialects.common.streaming.EventRenderer` says of streams, for whatever a source gives."""

    last: Last | None

    @property
    def keepalive(self) -> bytes:
        """What keeps a silent stream alive."""
        ...

    def lines(self, events: Sequence[_Shown_contra]) -> bytes:
        """Return what these add to the stream; may be empty."""
        ...

    def failure(self, problem: Problem) -> bytes:
        """Return the legal end of a stream that broke."""
        ...


class ResponseStream(ResponseBody):
    """A body that is written part by part, as the parts come to be."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether the last part was given out by iteration."""

    def write_with(self, chunk_writer: ChunkWriter | None) -> None:
        """Write by this chunk writer, if that is of use."""

    @abstractmethod
    def close(self) -> None:
        """Let the source go: nobody reads any more. Called once, however the body ended."""

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End: written to its end, cut, or cancelled."""
        self.close()

    def __aiter__(self) -> Self:
        """Iterate over parts."""
        return self

    @abstractmethod
    async def __anext__(self) -> bytes:
        """Return the next part, when there is one."""


class StreamBody(ResponseStream, Generic[_Told]):
    """The lines of a stream: all that have come since the last write go into one.

    The first write and the last are given out by iteration, for ASGI. With a chunk writer, those between are
    written by the code that puts the events, at once: no task runs for a token, unless the socket
    is full. Without one, iteration gives out all.

    Whatever goes wrong in here becomes the last line: once a stream has begun, there is no other
    way to tell the client.
    """

    def __init__(
        self,
        source: EventSource[_Told],
        renderer: LineRenderer[_Told],
        first: Sequence[_Told],
        *,
        log: InferenceLog,
        keep_alive_s: float,
        at_once: bool,
    ) -> None:
        self._source = source
        self._renderer = renderer
        self._first = first
        self._log = log
        self._keep_alive_s = AT_ONCE_S if at_once else keep_alive_s
        self._next_keep_alive_s = keep_alive_s
        self._chunk_writer: ChunkWriter | None = None
        self._lines = b""
        self._fault: Exception | None = None
        self._quiet_since = 0.0

    def write_with(self, chunk_writer: ChunkWriter | None) -> None:
        """Write by this chunk writer as soon as it is ready."""
        self._chunk_writer = chunk_writer

    @property
    def ended(self) -> bool:
        """Whether the last line was given out."""
        return self._renderer.last is not None

    def close(self) -> None:
        """Free the slot."""
        self._source.close()

    async def __anext__(self) -> bytes:
        """Return the bytes of the next write: lines, or a sign of life after a silent span."""
        if self.ended:
            raise StopAsyncIteration
        try:
            if self._chunk_writer is None or not self._chunk_writer.ready:
                data = await self._next_lines()
            else:
                data = await self._lines_after(self._chunk_writer)
        except Exception as error:  # noqa: BLE001  # told as the stream's last line; the log has the traceback
            self._log.broke(error)
            problem = InternalError("modeld failed in the middle of this answer; the log has the cause")
            data = self._renderer.failure(problem.as_problem())
        if self._log.verbose:
            self._log.sent(data)
        return data

    async def _next_lines(self) -> bytes:
        # Events that make no line do not end the client's silence.
        deadline = trio.current_time() + self._keep_alive_s
        self._keep_alive_s = self._next_keep_alive_s
        while True:
            events, self._first = self._first, ()
            with trio.CancelScope(deadline=deadline) as silence:
                events = events or await self._source.next()
            if silence.cancelled_caught:
                return self._renderer.keepalive
            lines = self._renderer.lines(events)
            if lines:
                return lines

    async def _lines_after(self, chunk_writer: ChunkWriter) -> bytes:
        """Let the chunk writer write lines; return what follows them: the last line, or a keep-alive."""
        self._quiet_since = trio.current_time()
        while True:
            # One deadline for many tokens: it is only looked at when it has passed.
            with trio.CancelScope(deadline=self._quiet_since + self._keep_alive_s) as silence:
                await self._source.drain(partial(self._write, chunk_writer))
            if silence.cancelled_caught and trio.current_time() >= self._quiet_since + self._keep_alive_s:
                return self._renderer.keepalive
            if self._fault is not None:
                raise self._fault
            if self._lines:
                return self._lines
            await chunk_writer.drain()
            self._quiet_since = trio.current_time()

    def _write(self, chunk_writer: ChunkWriter, events: Sequence[_Told]) -> bool:
        """Write the lines of these events; False when the task of this body has to go on.

        Runs in the turn of who puts the events, so nothing may come out of here.
        """
        try:
            lines = self._renderer.lines(events)
            if not lines:
                return True
            if self.ended:
                self._lines = lines
                return False
            self._quiet_since = trio.current_time()
            if self._log.verbose:
                self._log.sent(lines)
            return chunk_writer.write(lines)
        except Exception as error:  # noqa: BLE001  # this runs in the turn of who puts events: it is kept, and raised in the body's own task
            self._fault = error
            return False


# ----------------------------------------------------------------------
# The body of `GET /events`: what happens, as it happens, until the reader or the daemon leaves.

GATHER_S = 0.05
"""After a write, events are gathered for so long: a busy daemon writes some 20 times a second to a reader."""


class EventStreamBody(ResponseStream):
    """Events of one reader. Nothing is kept for it here: a slow one only reads later."""

    def __init__(
        self,
        reader: EventReader,
        *,
        wanted: Callable[[FleetEvent], bool],
        show: Show,
        begin: bytes,
        keepalive: bytes,
        keep_alive_s: float,
    ) -> None:
        self._reader = reader
        self._wanted = wanted
        self._show = show
        self._begin = begin
        self._keepalive = keepalive
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
            return self._keepalive
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
