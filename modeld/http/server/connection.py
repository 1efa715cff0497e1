# SPDX-License-Identifier: GPL-3.0-only
"""Handle one TCP connection from accept to close, in place of Hypercorn's Trio `TCPServer`.

It keeps what that one cannot: an exception stays inside its connection; a write that makes no
progress ends (`socket_writer.py`); a connection that should close does close, after its answer was read; a
client that leaves is noticed at once, whatever it sent before; and the listener's stop reaches all of
these.
The protocol, the streams and the way apps are run are Hypercorn's.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Callable
from typing import cast

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper

from modeld.http.limits import HttpLimits
from modeld.http.server.protocol import GuardedH11Protocol
from modeld.http.server.socket_writer import GONE, SocketWriter
from modeld.telemetry.log import get_logger

log = get_logger("modeld.http")

_CHUNK_BYTES = 64 * 1024


class Connection:
    """One client. `run` ends when the client left, when it was cut, or when it was served for good."""

    def __init__(
        self,
        stream: trio.SocketStream,
        *,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        limits: HttpLimits,
        on_refusal: Callable[[int], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._stream = stream
        self._tls = (
            None if tls is None else trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        )
        self._socket = stream.socket
        self._outgoing = SocketWriter(self._socket, self._tls, stall_s=limits.write_timeout_s)
        self.write_now = self._outgoing.write_now  # bound, not wrapped: it is called for every token
        self._app = app
        self._config = config
        self._context = context
        self._limits = limits
        self._on_refusal = on_refusal
        self._protocol: GuardedH11Protocol | None = None
        self._reading: trio.CancelScope | None = None
        self._deadline = trio.current_time() + limits.keep_alive_s
        self._expects_header = True
        self._woken = False
        self._lingering = False
        self._idle_since = trio.current_time()

    @property
    def idle_since(self) -> float | None:
        """When the last request ended (Trio's clock), or None while one is being served."""
        idle = self._protocol is None or self._protocol.idle
        return self._idle_since if idle and not self._lingering else None

    async def run(self) -> None:
        """Serve the client. Never raises an `Exception`: what goes wrong here is logged and stays here."""
        try:
            _watch_peer(self._socket, self._limits.write_timeout_s)
            if self._tls is not None and not await self._handshake(self._tls):
                return
            async with TaskGroup() as group:
                self._protocol = GuardedH11Protocol(
                    app=self._app,
                    config=self._config,
                    context=self._context,
                    task_group=group,
                    client=_host_and_port(self._socket.getpeername()),
                    server=_host_and_port(self._socket.getsockname()),
                    wire=self,
                    limits=self._limits,
                    on_refusal=self._on_refusal,
                )
                await self._read(self._protocol)
        except* GONE:
            pass  # The client left; whoever served it was told.
        except* Exception:  # the wall: one connection that breaks must not end the daemon
            log.exception("a connection broke; others are not affected")
        finally:
            self._socket.close()

    @property
    def encrypted(self) -> bool:
        """Whether this is a connection over TLS."""
        return self._tls is not None

    async def _handshake(self, tls: trio.SSLStream[trio.SocketStream]) -> bool:
        """Agree on keys; False when that took longer than headers may, or the listener stops meanwhile."""
        self._deadline = min(self._deadline, trio.current_time() + self._limits.header_timeout_s)
        with trio.CancelScope(deadline=self._deadline) as self._reading:
            await tls.do_handshake()
        if self._reading.cancelled_caught:
            return False
        self._wait_until(trio.current_time() + self._limits.keep_alive_s)
        return True

    async def _read(self, protocol: GuardedH11Protocol) -> None:
        try:
            while True:
                data = await self._receive(protocol)
                if data is None:
                    break
                await protocol.handle(RawData(data=data))
                if not data or protocol.buffered > self._limits.max_pipelined_bytes:
                    break
        finally:
            # Also when this very task is cancelled: the app's own tasks are, too.
            if not protocol.idle:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await protocol.handle(Closed())

    async def _receive(self, protocol: GuardedH11Protocol) -> bytes | None:
        """Return what the client sent (nothing: it left), or None when its time is over."""
        while True:
            if self._woken:
                self._woken = False
                await protocol.resume()
                continue
            if self._lingering and self._tls is not None:
                await self._linger(self._tls)
                return None
            with trio.CancelScope(deadline=self._deadline) as self._reading:
                data = await (self._tls or self._stream).receive_some(_CHUNK_BYTES)
                if not self._lingering:
                    self._note_header(protocol)
                    return bytes(data)
                if not data:
                    return None
            if self._lingering and self._tls is not None:
                continue
            if self._reading.cancelled_caught and not self._woken:
                if protocol.idle and protocol.buffered and not self._lingering:
                    seconds = self._limits.header_timeout_s
                    await protocol.refuse(
                        408,
                        "invalid_request",
                        f"the request's headers took longer than {seconds:g} s (header_timeout)",
                    )
                    continue
                return None

    async def _linger(self, tls: trio.SSLStream[trio.SocketStream]) -> None:
        """Tell the client that nothing follows, so that it can tell the end from a cut; then await its end.

        What it still sends is thrown away: bytes nobody took would reset the connection under its answer.
        """
        with trio.CancelScope(deadline=self._deadline) as self._reading:
            try:
                await tls.unwrap()
            except GONE:
                while await self._stream.receive_some(_CHUNK_BYTES):
                    pass

    def _note_header(self, protocol: GuardedH11Protocol) -> None:
        """The first byte of a request starts the clock for its headers."""
        if self._expects_header and protocol.idle:
            self._expects_header = False
            self._wait_until(trio.current_time() + self._limits.header_timeout_s)

    def _wait_until(self, deadline: float) -> None:
        self._deadline = deadline
        if self._reading is not None:
            self._reading.deadline = deadline

    async def send(self, event: Event) -> None:
        """Do what the protocol says; only `RawData` waits."""
        match event:
            case RawData(data=data):
                await self._outgoing.write(data)
            case Updated(idle=False):
                self._wait_until(math.inf)
            case Closed():
                self.finish()
            case _:
                pass

    def cycle_ended(self) -> None:
        """Await the next request, or go on with one that was sent ahead."""
        self._idle_since = trio.current_time()
        self._expects_header = True
        self._wait_until(self._idle_since + self._limits.keep_alive_s)
        if self._protocol is not None and self._protocol.buffered:
            self._expects_header = False
            self._wait_until(self._idle_since + self._limits.header_timeout_s)
            self._woken = True
            if self._reading is not None:
                self._reading.cancel()

    def finish(self) -> None:
        """Say that nothing more comes, and close when the client has closed too, or soon.

        Closing at once would reset a client that is still sending, and it would never read its answer.
        """
        if self._lingering:
            return
        self._lingering = True
        if self._tls is None:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.cut()
                return
        patience = 0.5 if self._context.terminated.is_set() else self._limits.linger_s
        self._wait_until(trio.current_time() + patience)
        if self._tls is not None and self._reading is not None:
            self._reading.cancel()  # Whoever reads says goodbye.

    def stop(self) -> None:
        """The listener stops: leave if idle; else end with this request, and wait less for the reader."""
        self._outgoing.set_deadline(self._limits.shutdown_timeout_s)
        if self._lingering:
            self._wait_until(min(self._deadline, trio.current_time() + 0.5))
        elif self.idle_since is not None:
            self.leave()

    def leave(self) -> None:
        """Close an idle connection: the client has nothing to lose."""
        self._wait_until(-math.inf)

    def cut(self) -> None:
        """Close at once and throw away what the client did not take. Idempotent."""
        self._outgoing.abort()


def _host_and_port(address: object) -> tuple[str, int] | None:
    """Return what ASGI wants of a socket's address; a Unix socket has neither."""
    if not isinstance(address, tuple):
        return None
    host, port = cast("tuple[object, ...]", address)[:2]
    return str(host), int(str(port))


def _watch_peer(sock: trio.socket.SocketType, seconds: float) -> None:
    """Have the kernel find out when the machine at the other end is gone, within about `seconds`."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": 30,
        "TCP_KEEPINTVL": 10,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": int(seconds * 1000),
    }
    for name, value in options.items():
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
