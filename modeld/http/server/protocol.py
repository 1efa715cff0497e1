# SPDX-License-Identifier: GPL-3.0-only
"""Hypercorn's HTTP/1.1 protocol, with the guards that it lacks.

What differs from `hypercorn.protocol.h11.H11Protocol`:

- Bytes sent ahead (pipelining) never park the reader, so a client that leaves is always noticed.
- `Upgrade` (WebSocket, h2c) is ignored, as RFC 9110 section 7.8 allows; the app refuses the former.
- HTTP/2 is off: its flow control would hide a reader that takes nothing from the write deadline.
- Malformed requests get JSON, and the connection says when it will close.
- The app finds a `ChunkWriter` in its scope, to write parts of a chunked answer past all of this, and a
  `RequestStream`,
  by which the body and the client's leaving come to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

import h11
from hypercorn.config import Config
from hypercorn.events import Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGISendEvent, ConnectionState

from modeld.dialects.native import error_body
from modeld.errors import Problem
from modeld.http.limits import HttpLimits
from modeld.http.request_id import new_id
from modeld.http.server.chunk_writer import ChunkWriter
from modeld.http.server.request_checks import (
    BodySize,
    HeadRefusal,
    headers_of,
    is_too_large,
    malformed,
    target_of,
)
from modeld.http.server.request_stream import RequestStream

# ----------------------------------------------------------------------
# What the HTTP/1.1 protocol needs of the connection that it speaks over.


class Transport(Protocol):
    """What the protocol needs of its connection. Nothing here waits, but `send`."""

    @property
    def encrypted(self) -> bool:
        """Whether bytes go through TLS, so that none can be written past it."""
        ...

    async def send(self, event: Event) -> None:
        """Write `RawData`; `Updated` and `Closed` only change what is waited for."""
        ...

    def write_now(self, data: bytes) -> int:
        """Write what goes at once, and return how many bytes that were; nobody else may be writing."""
        ...

    def cycle_ended(self) -> None:
        """Another request may follow."""
        ...

    def finish(self) -> None:
        """No request follows: close once the client has read the answer."""
        ...


# ----------------------------------------------------------------------

_EMPTY_LINES = re.compile(rb"(?:\r?\n)+")
_CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"
_NO_BODY = (204, 304)
_OPEN = (h11.IDLE, h11.SEND_RESPONSE)
"""States in which an answer can still be given."""


class GuardedH11Protocol(H11Protocol):
    """The protocol of one connection.

    Attributes:
      ending: the part of the answer's body that comes is the last one.
    """

    def __init__(
        self,
        *,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        task_group: TaskGroup,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        wire: Transport,
        limits: HttpLimits,
        on_refusal: Callable[[int], None],
    ) -> None:
        super().__init__(
            app, config, context, task_group, ConnectionState({}), wire.encrypted, client, server, wire.send
        )
        self._limits = limits
        self.connection = self._h11 = self._parser()
        self.ending = False
        self._wire = wire
        self._on_refusal = on_refusal
        self._held = b""
        self._method = b""
        self._is_chunked = False
        self._received = b""
        self._size = BodySize(self._h11, limits.max_body_bytes)
        self._request_stream: RequestStream | None = None

    @property
    def chunked(self) -> bool:
        """Whether parts may be written past this: the head of a chunked answer is sent, its end is not."""
        return (
            not self._wire.encrypted
            and self._is_chunked
            and not self._held
            and self._h11.our_state is h11.SEND_BODY
        )

    @property
    def idle(self) -> bool:
        """Whether no request is being served."""
        return self.stream is None

    @property
    def buffered(self) -> int:
        """Bytes received and not parsed."""
        return len(self._h11.trailing_data[0])

    async def resume(self) -> None:
        """Parse what was sent ahead of the request that just ended."""
        await self._handle_events()

    async def refuse(self, status: int, kind: str, message: str) -> None:
        """Answer without the app, if an answer is still possible, and end the connection."""
        if self._h11.our_state in _OPEN:
            body = error_body(Problem(kind=kind, message=message), code=status)
            self._on_refusal(status)
            head = h11.Response(
                status_code=status,
                headers=[
                    (b"content-type", b"application/json"),
                    (b"content-length", b"%d" % len(body)),
                    (b"connection", b"close"),
                    (b"x-content-type-options", b"nosniff"),
                    (b"x-request-id", new_id().encode()),
                    *self.config.response_headers("h11"),
                ],
            )
            data = self._h11.send(head) or b""
            if self._method != b"HEAD":
                data += self._h11.send(h11.Data(data=body)) or b""
            self._h11.send(h11.EndOfMessage())
            await self.send(RawData(data=data))
        self._wire.finish()

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what the app says: the head with the body's first part, its last part with the end."""
        match event:
            case Response(headers=headers, status_code=status) if status >= 200:
                headers = [*headers, *self.config.response_headers("h11")]
                if self._must_close():
                    headers.append((b"connection", b"close"))
                head = self._encode(h11.Response(status_code=status, headers=headers))
                # What h11 made of it counts: HTTP/1.0 gets no chunks, an announced length none either.
                self._is_chunked = (
                    _CHUNKED in head.lower() and self._method != b"HEAD" and status not in _NO_BODY
                )
                self._held += head
            case Body(data=data):
                self._held += self._encode(h11.Data(data=data))
                if not self.ending:
                    await self._flush()
            case EndBody():
                self._held += self._encode(h11.EndOfMessage())
                await self._flush()
            case _:
                await super().stream_send(event)

    def write_now(self, data: bytes) -> int:
        """Write what goes at once; see `Transport`."""
        return self._wire.write_now(data)

    async def write(self, data: bytes) -> None:
        """Write all of it."""
        await self.send(RawData(data=data))

    async def _flush(self) -> None:
        data, self._held = self._held, b""
        if data:
            await self.send(RawData(data=data))

    def _encode(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> bytes:
        """Return the bytes of an event; none when the client broke the protocol meanwhile."""
        try:
            return self._h11.send(event) or b""
        except h11.LocalProtocolError:
            if self._h11.their_state is not h11.ERROR:
                raise
            return b""

    def _must_close(self) -> bool:
        return self.context.terminated.is_set() or self._h11.their_state in (h11.SEND_BODY, h11.ERROR)

    def _parser(self) -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.max_header_bytes)

    def _skip_empty_lines(self) -> bool:
        """Drop empty lines before a request line (RFC 9112, 2.2); False when half of one is all there is."""
        if self._h11.their_state is not h11.IDLE:
            return True
        self._received, ended = data, _ = self._h11.trailing_data
        found = _EMPTY_LINES.match(data)
        if found is not None:
            # Between two requests a parser holds nothing else, and h11 cannot be told to forget bytes.
            data = data[found.end() :]
            self.connection = self._h11 = self._parser()
            if data:
                self._h11.receive_data(data)
            if ended:
                self._h11.receive_data(b"")
        return ended or data != b"\r"

    async def _handle_events(self) -> None:
        if not self._skip_empty_lines():
            return
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                await self.refuse(*malformed(error, self._received, self._limits))
                return
            match event:
                case h11.Request():
                    await self.send(Updated(idle=False))
                    if not await self._begin(event):
                        return
                case h11.Data(data=data) if self.stream is not None:
                    await self.stream.handle(Body(stream_id=STREAM_ID, data=bytes(data)))
                    self._grew(len(data))
                case h11.EndOfMessage() if self.stream is not None:
                    await self.stream.handle(EndBody(stream_id=STREAM_ID))
                case h11.NEED_DATA:
                    self._grew(0)
                    return
                case _:  # PAUSED, ConnectionClosed, or a body nobody waits for
                    return

    def _grew(self, size: int) -> None:
        """Have a body refused as soon as it says that it will be too large."""
        if self._request_stream is not None and self._size.grew(size):
            self._request_stream.refuse_body()

    async def _begin(self, request: h11.Request) -> bool:
        """Start the app on a request; False when it was refused."""
        self._method = request.method
        self._received = b""
        target = target_of(request, self._limits)
        if isinstance(target, HeadRefusal):
            await self.refuse(*target)
            return False
        if self._h11.they_are_waiting_for_100_continue and not is_too_large(request, self._limits):
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            await self.send(RawData(data=self._h11.send(go_on) or b""))
        self._size = BodySize(self._h11, self._limits.max_body_bytes)
        self.stream = stream = _Stream(self)
        self._request_stream = stream.request_stream
        await stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers_of(request),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii"),
                raw_path=target,
                state=ConnectionState(
                    stream.request_stream.into(ChunkWriter(self).attach(self.connection_state))
                ),
            )
        )
        return True

    async def _maybe_recycle(self) -> None:
        # `_close_stream` may have the very task that runs this cancelled: nothing after it may wait.
        await self._close_stream()
        ours, theirs = self._h11.our_state, self._h11.their_state
        if ours is h11.DONE and theirs is h11.DONE and not self.context.terminated.is_set():
            self._h11.start_next_cycle()
            self._skip_empty_lines()
            self._method = b""
            self._wire.cycle_ended()
        else:
            self._wire.finish()


class _Stream(HTTPStream):
    """One request and its answer; tells its protocol which part of the body is the last.

    Attributes:
      request_stream: where what the client sends goes.
    """

    def __init__(self, protocol: GuardedH11Protocol) -> None:
        super().__init__(
            protocol.app,
            protocol.config,
            protocol.context,
            protocol.task_group,
            protocol.ssl,
            protocol.client,
            protocol.server,
            protocol.stream_send,
            STREAM_ID,
        )
        self._protocol = protocol
        self.request_stream = RequestStream()

    async def handle(self, event: StreamEvent) -> None:
        """Take what the client sends. The app does not ask for it: it finds it in `RequestStream`."""
        if isinstance(event, StreamClosed) and self.state is ASGIHTTPState.CLOSED:
            self.closed = True  # The app said all it had to say: its end is no client's leaving.
            return
        await super().handle(event)
        if isinstance(event, Request):
            self.app_put = self.request_stream.feed

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Take what the app sends."""
        self._protocol.ending = (
            message is not None and message["type"] == "http.response.body" and not message["more_body"]
        )
        await super().app_send(message)
