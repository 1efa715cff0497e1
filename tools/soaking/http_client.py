# SPDX-License-Identifier: GPL-3.0-only
"""Send requests on plain sockets, one a connection, read as far as wanted, and leave in any way."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

import h11
import trio

PATIENCE_S = 120.0
"""A server that says nothing for so long is reported as silent."""
_READ_BYTES = 65536


def request_bytes(path: str, body: Mapping[str, object] | None) -> bytes:
    """Return a request as it goes over the wire; without a body it is a GET."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


class Response:
    """One request and what came of it so far.

    Attributes:
      status: 0 until the status line came.
      data: the body so far.
      whole: it came to its end. broken: the connection ended before, and how.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.status = 0
        self.data = b""
        self.headers: dict[str, str] = {}
        self.whole = False
        self.broken = ""
        self._stream = stream
        self._parser = h11.Connection(h11.CLIENT)
        self._parser.send(h11.Request(method="GET", target="/", headers=[("Host", "localhost")]))
        self._parser.send(h11.EndOfMessage())

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.whole or bool(self.broken)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The JSON values of the lines that came whole; none of what is no JSON."""
        if "json" not in self.headers.get("content-type", ""):
            return []
        whole = self.data if self.whole else self.data.rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.strip()]

    @property
    def tokens(self) -> int:
        """How many lines with text came."""
        return self.data.count(b'"done":false')

    @property
    def last(self) -> dict[str, Any]:
        """The last line; empty when there is none."""
        return (self.lines or [{}])[-1]

    @property
    def text(self) -> str:
        """The text, from the lines with tokens."""
        return "".join(str(line["token"]) for line in self.lines if "token" in line)

    async def advance(self) -> bool:
        """Take in what comes next; whether there may be more. Never raises for what the server does."""
        if self.ended:
            return False
        try:
            with trio.fail_after(PATIENCE_S):
                self._parser.receive_data(await self._stream.receive_some(_READ_BYTES))
            self._take()
        except trio.TooSlowError:
            self.broken = f"silent for {PATIENCE_S:g} s"
        except (trio.BrokenResourceError, OSError):
            self.broken = "reset"
        except h11.RemoteProtocolError as error:
            self.broken = f"cut ({error})"
        return not self.ended

    def _take(self) -> None:
        while True:
            match self._parser.next_event():
                case h11.Response() as response:
                    self.status = response.status_code
                    self.headers = {name.decode(): value.decode() for name, value in response.headers}
                case h11.Data() as data:
                    self.data += data.data
                case h11.EndOfMessage():
                    self.whole = True
                    return
                case h11.ConnectionClosed():
                    self.broken = "closed"
                    return
                case h11.NEED_DATA:
                    return
                case _:
                    pass

    async def until(self, tokens: int) -> bool:
        """Read until so many tokens came; whether they did."""
        while self.tokens < tokens and await self.advance():
            pass
        return self.tokens >= tokens

    async def finish(self) -> Response:
        """Read to the end, whatever that is, and close."""
        try:
            while await self.advance():
                pass
        finally:
            self._stream.socket.close()
        return self

    async def leave(self, how: str = "close") -> None:
        """Close the connection: `close`, `reset`, or `half`: say that nothing more is sent, then close."""
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            if how == "reset":
                self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if how == "half":
                await self._stream.send_eof()
                with trio.move_on_after(PATIENCE_S):
                    while await self._stream.receive_some(_READ_BYTES):
                        pass
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await self._stream.aclose()


async def connect(port: int, receive_buffer: int | None = None) -> trio.SocketStream:
    """Return a connection. Raises: OSError."""
    sock = trio.socket.socket()
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await sock.connect(("127.0.0.1", port))
    except BaseException:  # a cancellation, too: the socket does not leak
        sock.close()
        raise
    return trio.SocketStream(sock)


async def begin(
    port: int, body: Mapping[str, object] | None, path: str = "/infer", receive_buffer: int | None = None
) -> Response:
    """Send a request on a connection of its own. Raises: OSError when nobody listens."""
    stream = await connect(port, receive_buffer)
    call = Response(stream)
    try:
        await stream.send_all(request_bytes(path, body))
    except trio.BrokenResourceError:  # Reading tells.
        pass
    except BaseException:  # a cancellation, too: the socket does not leak
        stream.socket.close()
        raise
    return call


async def ask(port: int, body: Mapping[str, object] | None, path: str = "/infer") -> Response:
    """Send a request and read its whole answer. Raises: OSError when nobody listens."""
    return await (await begin(port, body, path)).finish()
