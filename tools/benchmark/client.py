# SPDX-License-Identifier: GPL-3.0-only
"""The load generator: N streaming clients in one small process, standard library only.

It shares the cores with what it measures, so while streams run it does nothing but wait, receive and
note the time; bytes are taken apart after the last one has come. It reads one job as JSON from stdin

    {"host", "port", "dialect": "modeld" | "openai", "requests": [HTTP text, ...], "deadline_s"}

and writes one list of streams as JSON to stdout, times in seconds since the first request was sent.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from bisect import bisect_left
from typing import Any

Answer = dict[str, Any]
"""What JSON makes of a job, and what of a stream."""

_END = b"\r\n0\r\n\r\n"
"""The last chunk, behind the end of the one before. JSON writes no bare line ends, so no text has it."""
_READ_BYTES = 1 << 16


class Stream:
    """One client: its socket, and what came when."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self.request = request
        self.socket = socket.create_connection((host, port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0.0
        self.pieces: list[tuple[float, bytes]] = []
        self.tail = b""

    def receive(self) -> bool:
        """Take what is there; returns whether that was the end."""
        data = self.socket.recv(_READ_BYTES)
        self.pieces.append((time.perf_counter(), data))
        if not data:
            return True
        self.tail = (self.tail + data[-len(_END) :])[-len(_END) :]
        return self.tail == _END


def run(job: Answer) -> list[Answer]:
    """Send all requests at once, wait for all answers, and return what came of each."""
    streams = [Stream(job["host"], job["port"], request.encode()) for request in job["requests"]]
    selector = selectors.DefaultSelector()
    for stream in streams:
        selector.register(stream.socket, selectors.EVENT_READ, stream)
    began = time.perf_counter()
    deadline = began + job["deadline_s"]
    for stream in streams:
        stream.sent = time.perf_counter()
        stream.socket.sendall(stream.request)
    left = len(streams)
    while left and (patience := deadline - time.perf_counter()) > 0:
        for key, _ in selector.select(patience):
            try:
                ended = key.data.receive()
            except ConnectionError:
                ended = True
            if ended:
                selector.unregister(key.fileobj)
                left -= 1
    for stream in streams:
        stream.socket.close()
    return [read(stream, began, job["dialect"]) for stream in streams]


def read(stream: Stream, began: float, dialect: str) -> Answer:
    """Take the bytes of one answer apart.

    Returns: status, sent, times (of each token), tokens (as the server counts them), text, finish,
    and an error where the answer is not a whole stream.
    """
    raw = b"".join(piece for _, piece in stream.pieces)
    head, _, rest = raw.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    result: Answer = {
        "status": int(words[1]) if len(words) > 1 and words[1].isdigit() else 0,
        "sent": stream.sent - began,
        "times": [],
        "tokens": 0,
        "text": "",
        "finish": None,
        "error": None,
    }
    if b"transfer-encoding: chunked" not in head.lower():
        result["error"] = rest.decode(errors="replace")[:500] or "no answer before the deadline"
        return result
    body, places, whole = dechunk(rest)
    arrivals = Arrivals(stream.pieces, len(raw) - len(rest))
    lines = [(line, arrivals.at(places, end)) for line, end in lines_of(body)]
    (native if dialect == "modeld" else openai)(lines, began, result)
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
    """Tells when a byte of a body came."""

    def __init__(self, pieces: list[tuple[float, bytes]], offset: int) -> None:
        self._times = [when for when, _ in pieces]
        self._ends: list[int] = []
        total = -offset
        for _, piece in pieces:
            total += len(piece)
            self._ends.append(total)

    def at(self, places: list[tuple[int, int]], end: int) -> float:
        """Return when the body was there up to `end`."""
        body_end, raw_end = places[bisect_left(places, (end, 0))]
        return self._times[bisect_left(self._ends, raw_end - (body_end - end))]


def native(lines: list[tuple[bytes, float]], began: float, result: Answer) -> None:
    """Read modeld's lines."""
    texts: list[str] = []
    for line, when in lines:
        value = json.loads(line)
        if not value.get("done", True):
            texts.append(value["token"])
            result["times"].append(when - began)
        elif value.get("done"):
            result["finish"] = value["finish_reason"]
            result["tokens"] = value["usage"]["completion_tokens"]
            result["prompt_tokens"] = value["usage"]["prompt_tokens"]
            result["cached_tokens"] = value["usage"]["cached_tokens"]
            result["stats"] = value["stats"]
            result["error"] = value.get("error")
            if value["content"] != "".join(texts):
                result["error"] = "the content of the last line is not the sum of the tokens"
    result["text"] = "".join(texts)
    if result["finish"] is None:
        result["error"] = "the stream ended without its last line"


def openai(lines: list[tuple[bytes, float]], began: float, result: Answer) -> None:
    """Read the server-sent events of /v1/completions."""
    texts: list[str] = []
    for line, when in lines:
        payload = line.strip().removeprefix(b"data:").strip()
        if not payload.startswith(b"{"):
            continue
        value = json.loads(payload)
        usage: Answer = value.get("usage") or {}
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


if __name__ == "__main__":
    json.dump(run(json.load(sys.stdin)), sys.stdout)
