# SPDX-License-Identifier: GPL-3.0-only
"""Clients of the measurements on plain sockets: one that blocks, and streams that are read side by side."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

from benchmark.daemon import BenchError, post

TIMEOUT_S = 60.0
_READ_BYTES = 1 << 16
_DEADLINE_S = 120.0
Line = dict[str, Any]


def connect(port: int, timeout: float) -> socket.socket:
    """Return a connection to this machine."""
    made = socket.create_connection(("127.0.0.1", port), timeout=timeout)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class Connection:
    """A connection to modeld that blocks. Requests go one after the other; `close` may come at any moment.

    Attributes:
      at: when the bytes of the last line came (time.perf_counter).
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = connect(port, TIMEOUT_S)
        self._data = b""
        self.at = 0.0

    def __enter__(self) -> Self:
        """Use it as a context manager to close it in the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def send(self, **body: object) -> float:
        """Send a request; returns when."""
        request = post(self._port, "/infer", body).encode()
        at = time.perf_counter()
        self._socket.sendall(request)
        return at

    def status(self) -> int:
        """Read the head of an answer, and the body of a refusal. Returns the status."""
        head = self._until(b"\r\n\r\n")
        status = int(head.split(None, 2)[1])
        if status != 200:
            fields = dict(line.split(b":", 1) for line in head.lower().split(b"\r\n")[1:] if b":" in line)
            length = int(fields[b"content-length"])
            while len(self._data) < length:
                self._receive()
            self._data = self._data[length:]
        return status

    def line(self) -> Line:
        """Read the next line that is not blank; chunk sizes between lines are skipped."""
        while not (raw := self._until(b"\n")).startswith(b"{"):
            pass
        value: Line = json.loads(raw)
        return value

    def until(self, key: str) -> Line:
        """Read lines up to one that has this key. Raises: BenchError when the stream ends before."""
        while key not in (value := self.line()):
            if value.get("done"):
                raise BenchError(f"a stream ended without a line with {key!r}: {value}")
        return value

    def last(self) -> Line:
        """Read up to the last line and return it."""
        while not (value := self.line()).get("done"):
            pass
        return value

    def close(self) -> float:
        """Close the socket; returns when."""
        at = time.perf_counter()
        self._socket.close()
        return at

    def _until(self, mark: bytes) -> bytes:
        while (at := self._data.find(mark)) < 0:
            self._receive()
        found, self._data = self._data[: at + len(mark)], self._data[at + len(mark) :]
        return found

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError:
            raise BenchError(f"modeld sent nothing for {TIMEOUT_S:g} s") from None
        if not data:
            raise BenchError(f"modeld closed a connection; the last it sent was {self._data[-300:]!r}")
        self.at = time.perf_counter()
        self._data += data


class StreamingRequest:
    """One streaming request on a socket of its own, read without blocking.

    Attributes:
      tokens: when each token came.
      queued, queued_at: the first event that says it waits, and when that came; None if it never did.
      done: whether the server closed the connection.
    """

    def __init__(self, port: int, path: str, body: dict[str, object], headers: str = "") -> None:
        self.tokens: list[float] = []
        self.queued: Line | None = None
        self.queued_at: float | None = None
        self.done = False
        self._tail = b""
        self.socket = connect(port, 30.0)
        self.sent = time.perf_counter()
        self.socket.sendall(post(port, path, {**body, "stream": True}, headers).encode())
        self.socket.setblocking(False)

    def receive(self) -> None:
        """Take what is there. Raises: BenchError when it is a refusal."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        self.feed(data, time.perf_counter())
        self.done = not data

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes that came now. Raises: BenchError when they are a refusal."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                raise BenchError(f"a server refused a request: {line.decode()} {self._tail.decode()[:300]}")
            at = line.find(b"{")
            if at < 0:
                continue
            value: Line = json.loads(line[at:])
            if value.get("event") == "queued" and self.queued is None:
                self.queued, self.queued_at = value, now
            choices: list[Line] = value.get("choices") or [{}]
            if "token" in value or choices[0].get("text"):
                self.tokens.append(now)

    def close(self) -> None:
        """Close the connection: the server ends the request."""
        self.socket.close()


class Reader:
    """Reads several streaming requests as their bytes come."""

    def __init__(self, requests: Iterable[StreamingRequest]) -> None:
        self._selector = selectors.DefaultSelector()
        for request in requests:
            self.add(request)

    def add(self, request: StreamingRequest) -> None:
        """Read this one too."""
        self._selector.register(request.socket, selectors.EVENT_READ, request)

    def until(self, reached: Callable[[], bool], deadline_s: float = _DEADLINE_S) -> None:
        """Read until something holds. Raises: BenchError when it does not in time."""
        deadline = time.perf_counter() + deadline_s
        while not reached():
            if time.perf_counter() > deadline:
                raise BenchError(f"nothing was reached within {deadline_s:g} s; is the server alive?")
            self.read(0.005)

    def read(self, timeout_s: float) -> None:
        """Read once, after waiting up to `timeout_s` for bytes."""
        for key, _ in self._selector.select(timeout_s):
            key.data.receive()
            if key.data.done:
                self._selector.unregister(key.fileobj)
