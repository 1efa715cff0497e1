# SPDX-License-Identifier: GPL-3.0-only
"""The load generator for control-plane figures: plain sockets that receive and count, standard library only.

It must not be the bottleneck, so it says what CPU time it took itself. It reads one job as JSON from stdin

    {"lines": {"port", "requests": [HTTP text, ...], "deadline_s"}}
    {"requests": {"port", "request": HTTP text, "clients", "seconds"}}

and writes one result as JSON to stdout. `lines` sends all requests at once and reads each stream to its
end; `requests` keeps `clients` connections busy with one request after the other.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from typing import Any

Found = dict[str, Any]
"""What is written as JSON."""

_END = b"\r\n0\r\n\r\n"
_HEAD_END = b"\r\n\r\n"
_TOKEN = b'{"token":'
"""Begins each token line. Chunks hold whole lines, so it is never split by the framing."""
_READ_BYTES = 1 << 18


def connect(port: int) -> socket.socket:
    """Return a connection to this machine."""
    made = socket.create_connection(("127.0.0.1", port), timeout=10)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def lines(port: int, requests: list[str], deadline_s: float) -> Found:
    """Read all streams to their ends.

    Returns: lines (counted in the bytes), tokens (as the server counts them), reads, writes at most
    as chunks, seconds from the first request to the last byte, cpu_s of this loop, error.
    """
    sockets = [connect(port) for _ in requests]
    pieces: list[list[bytes]] = [[] for _ in sockets]
    selector = selectors.DefaultSelector()
    for each, parts in zip(sockets, pieces, strict=True):
        selector.register(each, selectors.EVENT_READ, (each, parts))
    began, cpu_began = time.perf_counter(), time.process_time()
    for each, request in zip(sockets, requests, strict=True):
        each.sendall(request.encode())
    left = len(sockets)
    while left and (patience := began + deadline_s - time.perf_counter()) > 0:
        for key, _ in selector.select(patience):
            here, parts = key.data
            data = here.recv(_READ_BYTES)
            parts.append(data)
            if not data or data.endswith(_END):
                selector.unregister(here)
                left -= 1
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    for each in sockets:
        each.close()
    found = [whole(b"".join(parts)) for parts in pieces]
    return {
        "lines": sum(each["lines"] for each in found),
        "chunks": sum(each["chunks"] for each in found),
        "tokens": sum(each["tokens"] for each in found),
        "reads": sum(len(parts) for parts in pieces),
        "seconds": seconds,
        "cpu_s": cpu,
        "error": next((each["error"] for each in found if each["error"]), None),
    }


def whole(answer: bytes) -> Found:
    """Return what one stream brought: lines, chunks, tokens, and an error unless it is whole."""
    head, _, body = answer.partition(_HEAD_END)
    found: Found = {"lines": body.count(_TOKEN), "chunks": 0, "tokens": 0, "error": None}
    found["chunks"] = len(re.findall(rb"\r\n[0-9a-f]+\r\n", b"\r\n" + body)) - 1
    count = re.search(rb'"completion_tokens":(\d+)', body)
    if not answer.endswith(_END) or b'"finish_reason":"length"' not in body or count is None:
        found["error"] = f"a stream is not whole: {head[:60]!r} ... {answer[-300:]!r}"
    else:
        found["tokens"] = int(count[1])
        if found["tokens"] != found["lines"]:
            found["error"] = f"a stream of {found['tokens']} tokens brought {found['lines']} lines"
    return found


class Asker:
    """One connection that asks again as soon as it was answered."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = connect(port)
        self.request = request
        self.data = b""
        self.last = b""
        self.at = 0.0
        self.times: list[float] = []

    def ask(self) -> None:
        """Send the request."""
        self.at = time.perf_counter()
        self.socket.sendall(self.request)

    def receive(self) -> bool:
        """Take what is there; whether that completes an answer. Raises: ValueError for what is no 200."""
        self.data += self.socket.recv(_READ_BYTES)
        end = self.data.find(_HEAD_END)
        if end < 0:
            if not self.data:
                raise ValueError("the server closed a connection")
            return False
        head = self.data[:end].lower()
        mark = head.find(b"content-length:")
        if not head.startswith(b"http/1.1 200") or mark < 0:
            raise ValueError(f"not an answer: {self.data[:200]!r}")
        length = int(head[mark + 15 :].split(b"\r\n", 1)[0])
        if len(self.data) < end + len(_HEAD_END) + length:
            return False
        self.times.append(time.perf_counter() - self.at)
        self.last, self.data = self.data, b""
        return True


def requests(port: int, request: str, clients: int, seconds: float) -> Found:
    """Ask for some seconds.

    Returns: answers, seconds, cpu_s of this loop, p50_ms and p99_ms of an answer, and the last one.
    """
    askers = [Asker(port, request.encode()) for _ in range(clients)]
    selector = selectors.DefaultSelector()
    for asker in askers:
        selector.register(asker.socket, selectors.EVENT_READ, asker)
    began, cpu_began = time.perf_counter(), time.process_time()
    for asker in askers:
        asker.ask()
    while time.perf_counter() < began + seconds:
        for key, _ in selector.select(1.0):
            asker = key.data
            if asker.receive():
                asker.ask()
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    times = sorted(taken for asker in askers for taken in asker.times)
    last = askers[0].last
    for asker in askers:
        asker.socket.close()
    return {
        "answers": len(times),
        "seconds": spent,
        "cpu_s": cpu,
        "p50_ms": 1e3 * times[len(times) // 2],
        "p99_ms": 1e3 * times[len(times) * 99 // 100],
        "body": last.partition(_HEAD_END)[2].decode(),
        "bytes": len(last),
    }


if __name__ == "__main__":
    job = json.load(sys.stdin)
    result = lines(**job["lines"]) if "lines" in job else requests(**job["requests"])
    json.dump(result, sys.stdout)
