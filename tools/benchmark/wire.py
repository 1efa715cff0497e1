# SPDX-License-Identifier: GPL-3.0-only
"""One client of modeld on a plain socket, that notes when each line came and can leave at any moment."""

from __future__ import annotations

import json
import socket
import time
from typing import Any, Self

from benchmark.daemon import BenchError, post

PATIENCE_S = 60.0
Line = dict[str, Any]


class Wire:
    """A connection. Requests go one after the other; `leave` closes it under way.

    Attributes:
      at: when the bytes of the last line came (time.perf_counter).
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""
        self.at = 0.0

    def __enter__(self) -> Self:
        """Use it as a context manager to leave in the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave."""
        self.leave()

    def ask(self, **body: object) -> float:
        """Send a request; returns when."""
        request = post(self._port, "/infer", body).encode()
        at = time.perf_counter()
        self._socket.sendall(request)
        return at

    def status(self) -> int:
        """Read the head of an answer; of a refusal the body too. Returns the status."""
        head = self._until(b"\r\n\r\n")
        self._data = self._data[len(head) :]
        status = int(head.split(None, 2)[1])
        if status != 200:
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            while len(self._data) < length:
                self._more()
            self._data = self._data[length:]
        return status

    def line(self) -> Line:
        """Read the next line that is not blank; chunk sizes between lines are skipped."""
        while True:
            raw = self._until(b"\n")
            self._data = self._data[len(raw) :]
            if raw.startswith(b"{"):
                value: Line = json.loads(raw)
                return value

    def until(self, key: str) -> Line:
        """Read lines up to one that has this key. Raises: BenchError when the stream ends before."""
        while True:
            value = self.line()
            if key in value:
                return value
            if value.get("done"):
                raise BenchError(f"a stream ended without a line with {key!r}: {value}")

    def last(self) -> Line:
        """Read up to the last line and return it."""
        while not (value := self.line()).get("done"):
            pass
        return value

    def leave(self) -> float:
        """Close the socket; returns when."""
        at = time.perf_counter()
        self._socket.close()
        return at

    def _until(self, mark: bytes) -> bytes:
        while (at := self._data.find(mark)) < 0:
            self._more()
        return self._data[: at + len(mark)]

    def _more(self) -> None:
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            raise BenchError(f"modeld sent nothing for {PATIENCE_S:g} s") from None
        if not data:
            raise BenchError(f"modeld closed a connection; the last it sent was {self._data[-300:]!r}")
        self.at = time.perf_counter()
        self._data += data
