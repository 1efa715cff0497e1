# SPDX-License-Identifier: GPL-3.0-only
"""Write to one connection in order, and cut a client that does not read."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

import trio

from modeld.telemetry.log import get_logger

log = get_logger("modeld.http")

GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What is raised when the client is gone."""
_RECORD_BYTES = 16 * 1024
"""The most that TLS puts into one record (RFC 8446, 5.1)."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: on, zero seconds. Closing then throws away what was not sent."""


class SocketWriter:
    """Writes to one client, and cuts one that takes nothing."""

    def __init__(
        self,
        sock: trio.socket.SocketType,
        tls: trio.SSLStream[trio.SocketStream] | None,
        *,
        stall_s: float,
    ) -> None:
        """`tls`: what bytes go through, if encrypted; after `stall_s` without progress a write ends."""
        self._socket = sock
        self._tls = tls
        self._stall_s = stall_s
        self._lock = trio.Lock()
        self._writing: trio.CancelScope | None = None

    async def write(self, data: bytes) -> None:
        """Write all of it. A client that takes nothing for the write timeout is cut.

        What the socket takes at once costs neither a deadline nor a turn of the event loop: nearly
        every token of a stream does.

        Cancellation: what was not written is lost, and with it the connection.
        """
        if not data:
            return
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        if self._tls is not None:
            await self._write_encrypted(self._tls, data)
            return
        sent = 0
        try:
            with memoryview(data) as view:
                with suppress(BlockingIOError):
                    sent = os.write(self._socket.fileno(), view)
                while sent < len(data):
                    with trio.CancelScope(deadline=trio.current_time() + self._stall_s) as self._writing:
                        sent += await self._socket.send(view[sent:])
                    if self._writing.cancelled_caught:
                        log.info("a client that took nothing was cut", seconds=self._stall_s)
                        self.abort()
                        return
        except GONE:
            self.abort()
        finally:
            if sent < len(data):
                self.abort()
            self._writing = None
            self._lock.release()

    async def _write_encrypted(self, tls: trio.SSLStream[trio.SocketStream], data: bytes) -> None:
        """Write all of it, with the lock held: a record at a time, each of which must go in time."""
        whole = False
        try:
            for at in range(0, len(data), _RECORD_BYTES):
                with trio.CancelScope(deadline=trio.current_time() + self._stall_s) as self._writing:
                    await tls.send_all(data[at : at + _RECORD_BYTES])
                if self._writing.cancelled_caught:
                    log.info("a client that took nothing was cut", seconds=self._stall_s)
                    return
            whole = True
        except GONE:
            pass
        finally:
            if not whole:
                self.abort()
            self._writing = None
            self._lock.release()

    def write_now(self, data: bytes) -> int:
        """Write what the socket takes without waiting, and return how many bytes that were.

        Nothing goes while somebody else is writing. A client that is gone takes everything.
        """
        if self._lock.locked():
            return 0
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0
        except GONE:
            self.abort()
            return len(data)

    def set_deadline(self, seconds: float) -> None:
        """From now on a client that takes nothing is cut after so many seconds at the latest."""
        self._stall_s = min(self._stall_s, seconds)
        if self._writing is not None:
            self._writing.deadline = min(self._writing.deadline, trio.current_time() + self._stall_s)

    def abort(self) -> None:
        """Close at once and throw away what the client did not take. Idempotent."""
        if self._socket.fileno() != -1:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._socket.close()
