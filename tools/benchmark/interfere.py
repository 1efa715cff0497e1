# SPDX-License-Identifier: GPL-3.0-only
"""`bench interfere`: what a long prompt costs the streams that run, and what they cost it.

For each prompt length, several times:

(1) The prompt alone, on the idle server: time to its first token.
(2) Streams run. From the time at which all of them bring tokens, gaps between the tokens of each stream are
    noted for a while: the median before.
(3) Another prompt of that length arrives. Until its first token came, the gaps are those alongside it; a gap
    that begins before and ends after counts.

Told are the median, the p99 and the worst gap alongside the prompt, as multiples of the median before, and
how much longer the prompt took than alone. Both must be small at once: who postpones the prompt has the one,
who freezes the streams the other. The p99 before tells what of it is the machine's own unrest.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from benchmark import figures
from benchmark.daemon import BenchError, post
from benchmark.prompts import WORDS, make_prompts
from benchmark.systems import Target

CALM_S = 1.5
"""Gaps are noted for so long before the prompt arrives."""
_SHORT = 16
"""Tokens of the prompts of the streams."""
STREAM_TOKENS = 2000
"""Most tokens of a stream: more than come while a prompt of some thousand is decoded."""
_DEADLINE_S = 120.0


class Times(NamedTuple):
    """One prompt length, one time. Seconds; gaps are those of all streams together."""

    alone: float
    alongside: float
    before: list[float]
    during: list[float]


class Found(NamedTuple):
    """One server, one prompt length."""

    system: str
    tokens: int
    times: list[Times]


class Asked:
    """One streaming request on a socket of its own, read without ever waiting.

    Attributes:
      at: when each token came.
    """

    def __init__(self, target: Target, prompt: str, max_tokens: int) -> None:
        self._mark = b'"token"' if target.path == "/infer" else b'"text"'
        self.at: list[float] = []
        self.done = False
        self._tail = b""
        body: dict[str, object] = {
            "model": target.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        self.socket = socket.create_connection(("127.0.0.1", target.port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = time.perf_counter()
        self.socket.sendall(post(target.port, target.path, body).encode())
        self.socket.setblocking(False)

    def receive(self) -> None:
        """Take what is there. Raises: BenchError when it is a refusal, or the end before a token."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        now = time.perf_counter()
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                raise BenchError(f"a server refused a request: {line.decode()} {self._tail.decode()[:300]}")
            if self._mark in line and self._is_token(line):
                self.at.append(now)
        if not data:
            self.done = True

    def _is_token(self, line: bytes) -> bool:
        value: dict[str, Any] = json.loads(line[line.index(b"{") :])
        if "choices" in value:
            return bool(value["choices"] and value["choices"][0].get("text"))
        return not value.get("done")

    def leave(self) -> None:
        """Close the connection: the server ends the request."""
        self.socket.close()


class Watch:
    """Reads several requests in turn, as their bytes come."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self._selector = selectors.DefaultSelector()
        for each in asked:
            self.add(each)

    def add(self, asked: Asked) -> None:
        """Read this one too."""
        self._selector.register(asked.socket, selectors.EVENT_READ, asked)

    def until(self, reached: Callable[[], bool]) -> None:
        """Read until something holds. Raises: BenchError when it does not within two minutes."""
        deadline = time.perf_counter() + _DEADLINE_S
        while not reached():
            if time.perf_counter() > deadline:
                raise BenchError(f"nothing was reached within {_DEADLINE_S:g} s; is the server alive?")
            for key, _ in self._selector.select(0.005):
                key.data.receive()
                if key.data.done:
                    self._selector.unregister(key.fileobj)


def measure(target: Target, *, tokens: int, streams: int, seed: str, words: Sequence[str] = WORDS) -> Times:
    """Let one prompt of `tokens` tokens arrive among so many streams. Leaves the server idle."""
    alone_prompt, prompt = make_prompts(f"{seed} long", 2, tokens=tokens, words=words)
    alone = one_token(target, alone_prompt)
    settle(target, seed, words)
    shorts = make_prompts(f"{seed} short", streams, tokens=_SHORT, words=words)
    running = [Asked(target, short, STREAM_TOKENS) for short in shorts]
    late: Asked | None = None
    try:
        watch = Watch(running)
        watch.until(lambda: all(len(stream.at) > 2 for stream in running))
        calm_from = time.perf_counter()
        watch.until(lambda: time.perf_counter() > calm_from + CALM_S)
        late = Asked(target, prompt, 1)
        watch.add(late)
        came_yet = late.at.__len__
        watch.until(lambda: came_yet() > 0)
        came, sent = late.at[0], late.sent
        watch.until(lambda: all(stream.at[-1] > came or stream.done for stream in running))
    finally:
        for each in (*running, *([late] if late else [])):
            each.leave()
    settle(target, seed, words)
    gaps = [pair for stream in running for pair in pairwise(stream.at)]
    before = [after - at for at, after in gaps if at >= calm_from and after <= sent]
    during = [after - at for at, after in gaps if after > sent and at < came]
    return Times(alone, came - sent, before, during)


def one_token(target: Target, prompt: str) -> float:
    """Ask for one token; return the seconds until it came."""
    asked = Asked(target, prompt, 1)
    Watch([asked]).until(lambda: bool(asked.at))
    asked.leave()
    return asked.at[0] - asked.sent


def settle(target: Target, seed: str, words: Sequence[str] = WORDS) -> None:
    """Wait until the server has let go of what was left behind: one token, and then another, in no time."""
    for number in range(2):
        [prompt] = make_prompts(f"{seed} settle {number}", 1, tokens=2, words=words)
        one_token(target, prompt)
    time.sleep(0.2)  # part of the method: what was measured before does not run into the next


def summary(found: Found) -> dict[str, float]:
    """Return the medians over the times, in seconds and as multiples."""
    rows: list[tuple[float, ...]] = []
    for times in found.times:
        usual = median(times.before)
        unrest = figures.percentile(times.before, 99) / usual
        middle, worst = median(times.during), figures.percentile(times.during, 99)
        slower = times.alongside / times.alone
        rows.append(
            (times.alone, times.alongside, slower, usual, unrest, middle / usual, worst, worst / usual)
        )
    columns = [median(column) for column in zip(*rows, strict=True)]
    names = ("alone_s", "beside_s", "slower", "before_p50_s", "unrest", "middle", "during_p99_s", "stretch")
    together = dict(zip(names, columns, strict=True))
    return together | {"during_worst_s": max(max(times.during) for times in found.times)}


def line(tokens: int, times: Times) -> str:
    """Return one time in a line."""
    usual, p50, p99 = median(times.before), median(times.during), figures.percentile(times.during, 99)
    return (
        f"prompt of {tokens:5}: {times.alongside / times.alone:.2f} times as long as alone; "
        f"gaps {p50 / usual:.2f} times (p50), {p99 / usual:.2f} (p99), worst {1e3 * max(times.during):.0f} ms"
    )


def tell(found: Sequence[Found]) -> str:
    """Return the table."""
    head = ["prompt", "system", "alone ms", "alongside ms", "times", "gap before p50 ms", "p99, times"]
    head += ["during p50, times", "p99 ms", "times", "worst of all"]
    rows: list[list[str]] = []
    for each in sorted(found, key=lambda found: found.tokens):
        values = summary(each)
        rows.append(
            [
                str(each.tokens),
                each.system,
                f"{1e3 * values['alone_s']:.0f}",
                f"{1e3 * values['beside_s']:.0f}",
                f"{values['slower']:.2f}",
                f"{1e3 * values['before_p50_s']:.1f}",
                f"{values['unrest']:.2f}",
                f"{values['middle']:.2f}",
                f"{1e3 * values['during_p99_s']:.1f}",
                f"{values['stretch']:.2f}",
                f"{1e3 * values['during_worst_s']:.0f}",
            ]
        )
    return figures.table(head, rows)
