# SPDX-License-Identifier: GPL-3.0-only
"""`bench fairness`: one key has very many requests in a queue, another key asks once. How long does it wait?

The same is then measured with a daemon without keys, where all requests share one queue. Clients are sockets
of this process, which only waits, receives and records the time.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmark.clients import Reader, StreamingRequest
from benchmark.cpu_load import CpuUse, CpuWatch
from benchmark.daemon import BenchError, environment, modeld
from benchmark.options import Mode, modeld_flags, whole
from benchmark.report import Report

_SLOTS = 4
_BEGUN = 2 * _SLOTS
"""Requests of the crowd that have had their first token when the single one comes."""


class Found(NamedTuple):
    """What became of the single request. Times in seconds from its arrival."""

    keys: bool
    position: int
    """The first position in the queue that it was told; 0 if it never had to wait."""
    eta_s: float | None
    told_s: float
    """Until it was told its position: the daemon had to accept the connections of the crowd first."""
    first_token_s: float | None
    """None: not within the patience."""
    before: int
    """Requests of the crowd with a first token after it had its position and before its own first token."""
    rate: float
    """Requests of the crowd that began in a second, before it came."""

    def __str__(self) -> str:
        """Return it in a sentence."""
        eta = "no estimate" if self.eta_s is None else f"estimated at {self.eta_s:.1f} s"
        return (
            f"{self.name}: told its position {self.position} ({eta}) after {self.told_s:.1f} s; first token "
            f"{self.after}; then {self.before} of the crowd began (before it came {self.rate:.1f} a second)"
        )

    @property
    def name(self) -> str:
        """Which of the two daemons it is."""
        return "a key each" if self.keys else "without keys"

    @property
    def after(self) -> str:
        """When its first token came, in words."""
        return "not in time" if self.first_token_s is None else f"after {self.first_token_s:.1f} s"


def table(found: Sequence[Found]) -> str:
    """Return the table."""
    rows = ["                position   crowd before it   first token"]
    rows += [f"{one.name:<14}{one.position:>10}{one.before:>18}   {one.after}" for one in found]
    return "\n".join(rows)


def raise_file_limit(sockets: int) -> None:
    """Let this process and the daemon have a socket for each request. Raises: BenchError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = sockets + 256
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise BenchError(f"{sockets} requests need {needed} open files; ulimit -Hn is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def make_key(file: Path, name: str) -> str:
    """Make a key; return the header that carries it."""
    command = [sys.executable, "-m", "modeld", "keys", "add", name, "--keys-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise BenchError(f"no key could be made: {done.stderr.strip()}")
    return f"Authorization: Bearer {done.stdout.strip()}\r\n"


@contextlib.contextmanager
def daemon(options: argparse.Namespace, *, keys: bool) -> Generator[tuple[int, int, str, str]]:
    """Run modeld; yields its port, its process, and the headers of the crowd and of the single request."""
    most = str(2 * options.requests)
    flags = ["--llama-slots", str(_SLOTS), "--llama-threads", str(options.threads), "--max-wait", "1h"]
    flags += ["--max-queue-depth", most, "--max-queue-total", most, "--max-connections", most]
    flags += ["--log-level", "error", "--share-tokens", str(options.share_tokens), *modeld_flags(options)]
    crowd = single = ""
    with tempfile.TemporaryDirectory(prefix="modeld-fairness-") as name:
        if keys:
            file = Path(name) / "keys.yaml"
            crowd, single = make_key(file, "crowd"), make_key(file, "single")
            flags += ["--keys-file", str(file)]
        with modeld(*flags, models_dir=options.model.parent) as server:
            yield server.port, server.process.pid, crowd, single


def measure(port: int, options: argparse.Namespace, crowd: str, single: str) -> Found:
    """Fill the queue, send the single request, and wait for its first token. Raises: BenchError."""
    tokens = options.max_tokens
    body: dict[str, object] = {"model": options.model.name, "prompt": "Once upon a time"}
    body |= {"temperature": 0, "ignore_eos": True, "max_tokens": tokens}

    def begin(header: str, **more: object) -> StreamingRequest:
        return StreamingRequest(port, "/infer", {**body, **more}, header)

    loading = begin(crowd, max_tokens=1)
    Reader([loading]).until(lambda: bool(loading.tokens))
    loading.close()
    began = time.perf_counter()
    requests = [begin(crowd) for _ in range(options.requests)]
    asker: StreamingRequest | None = None
    reader = Reader(requests)
    try:
        reader.until(lambda: sum(bool(each.tokens) for each in requests) >= _BEGUN, options.patience)
        asker = begin(single, events=True)
        reader.add(asker)
        deadline = asker.sent + options.patience
        while not asker.tokens and time.perf_counter() < deadline:
            reader.read(1.0)
        return judge(asker, requests, began, keys=bool(single))
    finally:
        for request in (*requests, *([asker] if asker else [])):
            request.close()


def judge(asker: StreamingRequest, crowd: Sequence[StreamingRequest], began: float, *, keys: bool) -> Found:
    """Return what became of the single request."""
    came, queued = asker.sent, asker.queued or {}
    told, first = asker.queued_at or came, asker.tokens[0] if asker.tokens else None
    eta_ms = queued.get("eta_ms")
    starts = [each.tokens[0] for each in crowd if each.tokens]
    return Found(
        keys=keys,
        position=queued.get("position", 0),
        eta_s=None if eta_ms is None else eta_ms / 1000,
        told_s=told - came,
        first_token_s=None if first is None else first - came,
        before=sum(told < start and (first is None or start <= first) for start in starts),
        rate=sum(start <= came for start in starts) / (came - began),
    )


def add_options(mode: argparse.ArgumentParser) -> None:
    """Add the options of this mode."""
    mode.add_argument("--requests", type=whole(10, 5000), default=1000, help="in the queue (%(default)s)")
    mode.add_argument("--max-tokens", type=whole(1, 512), default=8, help="of each (%(default)s)")
    text = "seconds after which the single request is given up (%(default)s)"
    mode.add_argument("--patience", type=whole(1, 3600), default=90, help=text)
    text = "what one key may have in a turn (%(default)s)"
    mode.add_argument("--share-tokens", type=whole(64, 1_000_000), default=128, help=text)


def run(options: argparse.Namespace) -> int:
    """Measure with keys and without, print both, write the JSON."""
    given = {name: getattr(options, name) for name in ("requests", "max_tokens", "share_tokens")}
    report = Report(options, slots=_SLOTS, **given)
    raise_file_limit(options.requests)
    found: list[Found] = []
    uses: list[CpuUse] = []
    for keys in (True, False):
        with daemon(options, keys=keys) as (port, pid, crowd, single):
            watch = CpuWatch([pid])
            found.append(measure(port, options, crowd, single))
            uses.append(watch.stop())
            report.say(str(found[-1]))
    report.finish(table(found), uses, results=[one._asdict() for one in found])
    return 0


MODE = Mode(
    "one key has many requests in the queue, another asks once: how long does it wait?", add_options, run
)
