# SPDX-License-Identifier: GPL-3.0-only
"""The load generator: many clients in one small process, with the standard library only.

It shares the cores with what it measures, so while requests run it does nothing but wait, receive and note
the time; bytes are parsed after the last one has come. It reads one job as JSON from stdin

    {"streams": {"port", "dialect": "modeld" | "openai", "requests": [HTTP text, ...], "deadline_s"}}
    {"lines": {"port", "requests": [HTTP text, ...], "deadline_s"}}
    {"requests": {"port", "request": HTTP text, "clients", "seconds"}}

and writes the result as JSON to stdout. `streams` sends all requests at once and returns each stream with
the time of each token, in seconds since the first request was sent. `lines` only counts, and says what CPU
time the generator took itself. `requests` keeps `clients` connections busy with one request after the other.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

Values = dict[str, Any]
"""A job, a stream or a result, as JSON has it."""

_END = b"\r\n0\r\n\r\n"
"""The last chunk, after the end of the one before. JSON has no bare line ends, so no text contains it."""
_HEAD_END = b"\r\n\r\n"
_TOKEN = b'{"token":'
"""Begins each token line. Chunks hold whole lines, so it is never split by the framing."""
_READ_BYTES = 1 << 18


class Connection:
    """One client: its socket, and what came when."""

    def __init__(self, port: int, request: bytes) -> None:
        self.request = request
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0.0
        self.pieces: list[tuple[float, bytes]] = []
        self.tail = b""

    def send(self) -> None:
        """Send the request."""
        self.sent = time.perf_counter()
        self.socket.sendall(self.request)

    def receive(self) -> bool:
        """Take what is there; returns whether that was the end of a stream."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except ConnectionError:
            data = b""
        self.pieces.append((time.perf_counter(), data))
        if not data:
            return True
        self.tail = (self.tail + data[-len(_END) :])[-len(_END) :]
        return self.tail == _END


def read_all(port: int, requests: Sequence[str], deadline_s: float) -> tuple[list[Connection], float]:
    """Send all requests at once and read all streams to their ends; returns them, and when they began."""
    connections = [Connection(port, request.encode()) for request in requests]
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    began = time.perf_counter()
    for connection in connections:
        connection.send()
    running = len(connections)
    while running and (remaining := began + deadline_s - time.perf_counter()) > 0:
        for key, _ in selector.select(remaining):
            if key.data.receive():
                selector.unregister(key.fileobj)
                running -= 1
    for connection in connections:
        connection.socket.close()
    return connections, began


# --- streams --------------------------------------------------------------------------------------


def streams(port: int, requests: Sequence[str], deadline_s: float, dialect: str) -> list[Values]:
    """Return what came of each request."""
    connections, began = read_all(port, requests, deadline_s)
    return [parse(connection, began, dialect) for connection in connections]


def parse(connection: Connection, began: float, dialect: str) -> Values:
    """Parse the bytes of one answer.

    Returns: status, sent, times (of each token), tokens (as the server counts them), text, finish, and an
    error where the answer is not a whole stream.
    """
    raw = b"".join(piece for _, piece in connection.pieces)
    head, _, rest = raw.partition(_HEAD_END)
    words = head.split(None, 2)
    result: Values = {"sent": connection.sent - began, "times": [], "tokens": 0, "text": ""}
    result |= {"finish": None, "error": None}
    result["status"] = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    if b"transfer-encoding: chunked" not in head.lower():
        result["error"] = rest.decode(errors="replace")[:500] or "no answer before the deadline"
        return result
    body, places, whole = dechunk(rest)
    arrivals = Arrivals(connection.pieces, len(raw) - len(rest))
    timed = [(line, arrivals.at(places, end)) for line, end in lines_of(body)]
    (parse_modeld if dialect == "modeld" else parse_openai)(timed, began, result)
    if not whole:
        result["error"] = "the stream was cut before its end, or did not end before the deadline"
    return result


def dechunk(data: bytes) -> tuple[bytes, list[tuple[int, int]], bool]:
    """Return the body, its chunks as (end in the body, end in `data`), and whether it is whole."""
    body = bytearray()
    places: list[tuple[int, int]] = []
    at = 0
    while (mark := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:mark].split(b";")[0], 16)
        if size == 0:
            return bytes(body), places, True
        body += data[mark + 2 : mark + 2 + size]
        at = mark + 2 + size
        places.append((len(body), min(at, len(data))))
        at += 2
    return bytes(body), places, False


def lines_of(body: bytes) -> list[tuple[bytes, int]]:
    """Return the lines that are not blank, each with the place of its end."""
    found: list[tuple[bytes, int]] = []
    at = 0
    while (mark := body.find(b"\n", at)) >= 0:
        if mark > at:
            found.append((body[at:mark], mark + 1))
        at = mark + 1
    return found


class Arrivals:
    """When each byte of a body came."""

    def __init__(self, pieces: list[tuple[float, bytes]], offset: int) -> None:
        self._times = [when for when, _ in pieces]
        self._ends: list[int] = []
        total = -offset
        for _, piece in pieces:
            total += len(piece)
            self._ends.append(total)

    def at(self, places: list[tuple[int, int]], end: int) -> float:
        """Return when the body had come up to `end`."""
        body_end, raw_end = places[bisect_left(places, (end, 0))]
        return self._times[bisect_left(self._ends, raw_end - (body_end - end))]


def parse_modeld(lines: list[tuple[bytes, float]], began: float, result: Values) -> None:
    """Parse modeld's own lines."""
    texts: list[str] = []
    for line, when in lines:
        value = json.loads(line)
        if not value.get("done", True):
            texts.append(value["token"])
            result["times"].append(when - began)
        elif value.get("done"):
            usage = value["usage"]
            result |= {"finish": value["finish_reason"], "tokens": usage["completion_tokens"]}
            result |= {"prompt_tokens": usage["prompt_tokens"], "error": value.get("error")}
            if value["content"] != "".join(texts):
                result["error"] = "the content of the last line is not the sum of the tokens"
    result["text"] = "".join(texts)
    if result["finish"] is None:
        result["error"] = "the stream ended without its last line"


def parse_openai(lines: list[tuple[bytes, float]], began: float, result: Values) -> None:
    """Parse the server-sent events of /v1/completions."""
    texts: list[str] = []
    for line, when in lines:
        payload = line.strip().removeprefix(b"data:").strip()
        if not payload.startswith(b"{"):
            continue
        value = json.loads(payload)
        usage: Values = value.get("usage") or {}
        result["tokens"] = usage.get("completion_tokens", result["tokens"])
        result["prompt_tokens"] = usage.get("prompt_tokens", result.get("prompt_tokens"))
        if "error" in value:
            result["error"] = json.dumps(value["error"])[:500]
        for choice in value.get("choices", ()):
            if choice.get("text"):
                texts.append(choice["text"])
                result["times"].append(when - began)
            result["finish"] = choice.get("finish_reason") or result["finish"]
    result["text"] = "".join(texts)
    result["tokens"] = result["tokens"] or len(result["times"])


# --- lines ----------------------------------------------------------------------------------------


def lines(port: int, requests: Sequence[str], deadline_s: float) -> Values:
    """Count the lines of all streams.

    Returns: lines (counted in the bytes), tokens (as the server counts them), chunks, seconds from the first
    request to the last byte, cpu_s of this process meanwhile, error.
    """
    cpu_began = time.process_time()
    connections, began = read_all(port, requests, deadline_s)
    cpu = time.process_time() - cpu_began
    ended = max((connection.pieces[-1][0] for connection in connections if connection.pieces), default=began)
    counted = [count(b"".join(piece for _, piece in connection.pieces)) for connection in connections]
    sums = {name: sum(each[name] for each in counted) for name in ("lines", "chunks", "tokens")}
    error = next((each["error"] for each in counted if each["error"]), None)
    return {**sums, "seconds": ended - began, "cpu_s": cpu, "error": error}


def count(answer: bytes) -> Values:
    """Return what one stream brought: lines, chunks, tokens, and an error unless it is whole."""
    head, _, body = answer.partition(_HEAD_END)
    found: Values = {"lines": body.count(_TOKEN), "chunks": 0, "tokens": 0, "error": None}
    found["chunks"] = len(re.findall(rb"\r\n[0-9a-f]+\r\n", b"\r\n" + body)) - 1
    tokens = re.search(rb'"completion_tokens":(\d+)', body)
    if not answer.endswith(_END) or b'"finish_reason":"length"' not in body or tokens is None:
        found["error"] = f"a stream is not whole: {head[:60]!r} ... {answer[-300:]!r}"
    else:
        found["tokens"] = int(tokens[1])
        if found["tokens"] != found["lines"]:
            found["error"] = f"a stream of {found['tokens']} tokens brought {found['lines']} lines"
    return found


# --- requests -------------------------------------------------------------------------------------


def completed(data: bytes) -> bool:
    """Whether an answer with `Content-Length` is complete. Raises: ValueError for anything but a 200."""
    end = data.find(_HEAD_END)
    if end < 0:
        return False
    length = re.search(rb"\r\ncontent-length: *(\d+)", data[:end].lower())
    if not data.lower().startswith(b"http/1.1 200") or length is None:
        raise ValueError(f"not an answer: {data[:200]!r}")
    return len(data) >= end + len(_HEAD_END) + int(length[1])


def requests(port: int, request: str, clients: int, seconds: float) -> Values:
    """Send requests for some seconds.

    Returns: answers, seconds, cpu_s of this process, p50_ms and p99_ms of an answer, and the last body.
    """
    connections = [Connection(port, request.encode()) for _ in range(clients)]
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    times: list[float] = []
    last = b""
    began, cpu_began = time.perf_counter(), time.process_time()
    for connection in connections:
        connection.send()
    while time.perf_counter() < began + seconds:
        for key, _ in selector.select(1.0):
            connection = key.data
            if connection.receive() and not connection.pieces[-1][1]:
                raise ValueError("the server closed a connection")
            answer = b"".join(piece for _, piece in connection.pieces)
            if completed(answer):
                times.append(connection.pieces[-1][0] - connection.sent)
                last = answer
                connection.pieces.clear()
                connection.send()
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    for connection in connections:
        connection.socket.close()
    times.sort()
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    result: Values = {"answers": len(times), "seconds": spent, "cpu_s": cpu}
    return result | {"p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99, "body": last.partition(_HEAD_END)[2].decode()}


JOBS: dict[str, Callable[..., Any]] = {"streams": streams, "lines": lines, "requests": requests}

if __name__ == "__main__":
    [(name, job)] = json.load(sys.stdin).items()
    json.dump(JOBS[name](**job), sys.stdout)
