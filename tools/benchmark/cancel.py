# SPDX-License-Identifier: GPL-3.0-only
"""`bench cancel`: how long after a client leaves what it held is free for another.

The daemon has one slot and room for one waiting request. All times are measured from outside, by clients:

decoding, prefill: A holds the slot; B waits for it and has an event that says so; A closes its socket.
  Measured is the time from that close() until B's first token arrives, less the time B then spent in
  its slot, as its own last line tells it (stats.ttft_ms - stats.queue_ms, whole milliseconds). What is
  left is the daemon's time to notice and to free the slot, and both ways through the network stack.
queued, loading: no client can see that a place in a queue is free, but it can take it. The queue is full, so
  that C is refused with 429; then the waiting client closes its socket, and C asks again and again on a
  connection that is kept open, until it is taken (200). Measured is the time from that close() until
  C has the 200; it is a whole number of C's requests, of about a millisecond each.

Whether A was in the phase that was meant is asked of the daemon (modeld_cancels_total); else the try is
thrown away. Moments are random within a phase.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmark import figures
from benchmark.clients import Connection
from benchmark.cpu_load import CpuWatch
from benchmark.daemon import BenchError, get, modeld
from benchmark.options import Mode, chosen, modeld_flags, whole
from benchmark.prompts import make_prompts
from benchmark.report import Report

PHASES = ("decoding", "prefill", "queued", "loading")
COUNTED_AS = {"decoding": "decode", "prefill": "prefill", "queued": "queued", "loading": "queued"}
"""The daemon's own word for each phase; a request that waits for a load has no slot, so it is queued."""
ENDLESS = 4000
"""Tokens of an answer that is never read to its end."""
_IDLE = 15
_MISSES = 3
"""Tries thrown away for each that counts, before it is given up."""


class Miss(Exception):
    """The client left in another phase than was meant: throw the try away."""


class Found(NamedTuple):
    """What was measured in one phase, in seconds."""

    phase: str
    seconds: list[float]
    thrown_away: int


class Cancels:
    """The measurement against one daemon with `--llama-slots 1 --max-queue-depth 1`."""

    def __init__(self, port: int, model: str, *, prompt_tokens: int) -> None:
        self._port = port
        self._model = model
        self._tokens = prompt_tokens
        self._random = random.Random("")  # noqa: S311  # moments, no secrets
        self._count = 0
        self.idle_s = 0.0
        self.prefill_s = 0.0

    def run(self, phase: str, times: int, say: Callable[[str], None]) -> Found:
        """Measure a phase so many times. Raises: BenchError when it cannot be hit."""
        attempt = getattr(self, f"_{phase}")
        seconds: list[float] = []
        thrown_away = 0
        while len(seconds) < times:
            before = self._cancels(COUNTED_AS[phase])
            try:
                seconds.append(attempt())
            except Miss as miss:
                thrown_away += 1
                if thrown_away > _MISSES * times:
                    raise BenchError(
                        f"{phase} was missed {thrown_away} times; the last time: {miss}"
                    ) from None
                continue
            if self._cancels(COUNTED_AS[phase]) <= before:
                seconds.pop()
                thrown_away += 1
            if seconds and len(seconds) % 20 == 0:
                say(f"{phase}: {len(seconds)} of {times}")
        return Found(phase, seconds, thrown_away)

    def prepare(self) -> None:
        """Load the model, and learn what an idle daemon's first token and a long prefill take."""
        self._alone(1)
        self.idle_s = median(self._alone(1) for _ in range(_IDLE))
        self.prefill_s = median(self._alone(self._tokens) for _ in range(3))

    def _alone(self, tokens: int) -> float:
        with Connection(self._port) as connection:
            sent = connection.send(**self._body(tokens, max_tokens=1))
            connection.last()
            return connection.at - sent

    def _decoding(self) -> float:
        with Connection(self._port) as ours, Connection(self._port) as next_one:
            ours.send(**self._body(4, max_tokens=ENDLESS))
            for _ in range(self._random.randint(1, 8)):
                ours.until("token")
            self._wait_behind(next_one)
            time.sleep(self._random.uniform(0, 0.03))  # anywhere within a step
            return self._leave_to(ours, next_one)

    def _prefill(self) -> float:
        with Connection(self._port) as ours, Connection(self._port) as next_one:
            sent = ours.send(**self._body(self._tokens, max_tokens=1))
            time.sleep(min(0.02, self.prefill_s / 20))  # it has the slot before the next one comes
            self._wait_behind(next_one)
            moment = sent + self.prefill_s * self._random.uniform(0.1, 0.8)
            time.sleep(max(0.0, moment - time.perf_counter()))  # a moment by chance within the prefill
            return self._leave_to(ours, next_one)

    def _queued(self) -> float:
        with (
            Connection(self._port) as running,
            Connection(self._port) as waiter,
            Connection(self._port) as prober,
        ):
            running.send(**self._body(4, max_tokens=ENDLESS))
            running.until("token")
            self._wait_behind(waiter)
            return self._take_place(waiter, prober)

    def _loading(self) -> float:
        """The model is unloaded as soon as it is idle (keep_alive 0), so each try loads it again."""
        self._until_unloaded()
        with (
            Connection(self._port) as first,
            Connection(self._port) as waiter,
            Connection(self._port) as prober,
        ):
            first.send(**self._body(1, max_tokens=1), events=True, keep_alive="0s")
            while first.until("event")["event"] != "loading":
                pass
            waiter.send(**self._body(1, max_tokens=1), events=True, keep_alive="0s")
            waiter.until("event")
            time.sleep(self._random.uniform(0, 0.1))  # a moment by chance within the load
            found = self._take_place(waiter, prober, keep_alive="0s")
            events = [prober.line(), prober.line()]
            if not any(line.get("event") == "loading" for line in events):
                raise Miss("the load was over before the place was taken")
            first.last()
        return found

    def _wait_behind(self, connection: Connection) -> None:
        """Ask for one token, and hear that the request waits for the slot."""
        connection.send(**self._body(1, max_tokens=1), events=True)
        if connection.line().get("event") != "queued":
            raise Miss("the slot was free already")

    def _leave_to(self, ours: Connection, next_one: Connection) -> float:
        left = ours.close()
        next_one.until("token")
        came = next_one.at
        if came < left:
            raise Miss("the slot was free already")
        stats: dict[str, float] = next_one.last()["stats"]
        return came - left - (stats["ttft_ms"] - stats["queue_ms"]) / 1000

    def _take_place(self, waiter: Connection, prober: Connection, **more: object) -> float:
        prober.send(**self._body(1, max_tokens=1), events=True, **more)
        if prober.status() != 429:
            raise Miss("the queue had room already")
        left = waiter.close()
        while True:
            prober.send(**self._body(1, max_tokens=1), events=True, **more)
            if prober.status() == 200:
                return prober.at - left

    def _until_unloaded(self) -> None:
        with Connection(self._port) as connection:
            connection.send(**self._body(1, max_tokens=1), keep_alive="0s")
            if connection.status() == 200:
                connection.last()
        deadline = time.monotonic() + 20
        while any(
            view["state"] not in ("stopped", "error")
            for view in json.loads(get(self._port, "/status"))["instances"]
        ):
            if time.monotonic() > deadline:
                raise BenchError("the model was not unloaded within 20 s of keep_alive 0s")
            time.sleep(0.005)  # /status is asked: no event tells a client

    def _body(self, tokens: int, *, max_tokens: int) -> dict[str, Any]:
        self._count += 1
        [prompt] = make_prompts(str(self._count), 1, tokens=tokens)
        body: dict[str, Any] = {"model": self._model, "prompt": prompt, "max_tokens": max_tokens}
        return body | {"temperature": 0, "ignore_eos": True}

    def _cancels(self, counted_as: str) -> float:
        text = get(self._port, "/metrics")
        pattern = rf'^modeld_cancels_total{{[^}}]*phase="{counted_as}"[^}}]*}} (\S+)$'
        return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))


def table(found: Sequence[Found]) -> str:
    """Return the table."""
    rows: list[list[str]] = []
    for it in found:
        values = (median(it.seconds), figures.percentile(it.seconds, 95), max(it.seconds))
        times = [f"{1e3 * value:.1f}" for value in values]
        rows.append([it.phase, str(len(it.seconds)), *times, str(it.thrown_away)])
    return figures.table(["phase", "times", "median ms", "p95 ms", "worst ms", "thrown away"], rows)


def add_options(mode: argparse.ArgumentParser) -> None:
    """Add the options of this mode."""
    mode.add_argument("--times", type=whole(1, 1000), default=100)
    text = "times for `loading`: each is a load"
    mode.add_argument("--load-times", type=whole(1, 200), default=30, help=text)
    mode.add_argument("--prompt-tokens", type=whole(16, 16384), default=2000, help="of the prompt in prefill")
    mode.add_argument("--phases", default=",".join(PHASES), help="which, of: %(default)s")


def run(options: argparse.Namespace) -> int:
    """Measure each phase, print the table, write the JSON."""
    phases = chosen("phase", options.phases, PHASES)
    tokens = options.prompt_tokens
    report = Report(options, prefill_tokens=tokens)
    flags = ["--llama-slots", "1", "--max-queue-depth", "1", "--llama-threads", str(options.threads)]
    with modeld(*flags, *modeld_flags(options), models_dir=options.model.parent) as server:
        measured = Cancels(server.port, options.model.name, prompt_tokens=tokens)
        measured.prepare()
        idle_s, prefill_s = measured.idle_s, measured.prefill_s
        report.say(
            f"on the idle daemon a one-token request takes {1e3 * idle_s:.1f} ms, "
            f"a prefill of {tokens} tokens {1e3 * prefill_s:.0f} ms"
        )
        watch = CpuWatch([server.process.pid])
        times = {phase: options.load_times if phase == "loading" else options.times for phase in phases}
        found = [measured.run(phase, times[phase], report.say) for phase in phases]
        use = watch.stop()
    results = {it.phase: {"seconds": it.seconds, "thrown_away": it.thrown_away} for it in found}
    report.finish(table(found), [use], results=results, idle_s=idle_s, prefill_s=prefill_s)
    return 0


MODE = Mode("time from a client's leaving until what it held is free for another", add_options, run)
