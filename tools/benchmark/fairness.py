# SPDX-License-Identifier: GPL-3.0-only
"""`bench fairness`: one key has very many requests in a queue, another key asks once. How long does it wait?

The same is then asked of a daemon without keys, where all requests are of one line. Clients are sockets of
this process: it only waits, receives and notes the time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import selectors
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmark import noise
from benchmark.daemon import BenchError, Server, environment, modeld
from benchmark.report import Report

_SLOTS = 4
_BEGUN = 2 * _SLOTS
"""Requests of the crowd that have had their first token when the single one comes."""
_PROMPT = "Once upon a time"
_READ_BYTES = 1 << 16
_EVENT = b'{"event":"queued"'
_TOKEN = b'{"token"'


class Found(NamedTuple):
    """What became of the single request. Times in seconds from its arrival."""

    keys: bool
    position: int
    eta_s: float | None
    told_s: float
    """Until it was told its place: the daemon had the connections of the crowd to take first."""
    first_token_s: float | None
    """None: not within the patience."""
    before: int
    """Requests of the crowd that had their first token after it had its place, and before it had its own."""
    rate: float
    """Requests of the crowd that began in a second, before it came."""


def add_mode(modes: Any, common: argparse.ArgumentParser, whole: Callable[[int, int], Any]) -> None:
    """Add the mode to the command line; `whole` makes parsers of bounded numbers."""
    text = "one key has many requests in the queue, another asks once: how long does it wait?"
    mode = modes.add_parser("fairness", parents=[common], help=text, description=text)
    mode.add_argument("--requests", type=whole(10, 5000), default=1000, help="in the queue (%(default)s)")
    mode.add_argument("--max-tokens", type=whole(1, 512), default=8, help="of each (%(default)s)")
    text = "seconds after which the single request is given up (%(default)s)"
    mode.add_argument("--patience", type=whole(1, 3600), default=90, help=text)
    text = "what one key may have in a turn (%(default)s)"
    mode.add_argument("--share-tokens", type=whole(64, 1_000_000), default=128, help=text)


def run_fairness(options: argparse.Namespace) -> int:
    """Measure with keys and without, print both, write the JSON."""
    report = Report("fairness", options.out, options.json)
    report.head(
        model=options.model.name,
        threads=options.threads,
        slots=_SLOTS,
        requests=options.requests,
        max_tokens=options.max_tokens,
        share_tokens=options.share_tokens,
    )
    _raise_file_limit(options.requests)
    found: list[Found] = []
    seen: list[noise.Seen] = []
    for keys in (True, False):
        with _daemon(options, keys=keys) as (server, (crowd, single)):
            watch = noise.Watch([server.process.pid])
            found.append(_measure(server.port, options, crowd, single))
            seen.append(watch.stop())
            report.say(line(found[-1]))
    report.say("\n" + tell(found) + "\n")
    report.say(noise.verdict(seen))
    report.add(results=[one._asdict() for one in found], cpu_of_others=[one.others for one in seen])
    report.write()
    return 0


def line(one: Found) -> str:
    """Return what was found in a sentence."""
    eta = "no estimate" if one.eta_s is None else f"estimated at {one.eta_s:.1f} s"
    return (
        f"{_name(one)}: told its position {one.position} ({eta}) after {one.told_s:.1f} s; first token "
        f"{_after(one)}; then {one.before} of the crowd began (before it came {one.rate:.1f} a second)"
    )


def tell(found: Sequence[Found]) -> str:
    """Return the table."""
    rows = ["                position   crowd before it   first token"]
    rows += [f"{_name(one):<14}{one.position:>10}{one.before:>18}   {_after(one)}" for one in found]
    return "\n".join(rows)


def _name(one: Found) -> str:
    return "a key each" if one.keys else "without keys"


def _after(one: Found) -> str:
    return "not in time" if one.first_token_s is None else f"after {one.first_token_s:.1f} s"


def _raise_file_limit(sockets: int) -> None:
    """Let this process and the daemon have a socket for each request. Raises: BenchError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = sockets + 256
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise BenchError(f"{sockets} requests need {needed} open files; ulimit -Hn is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextlib.contextmanager
def _daemon(options: argparse.Namespace, *, keys: bool) -> Generator[tuple[Server, tuple[str, str]]]:
    """Run modeld; yields it, and the headers of the crowd and of the single request."""
    with tempfile.TemporaryDirectory(prefix="modeld-fairness-") as name:
        flags = ["--llama-slots", str(_SLOTS), "--llama-threads", str(options.threads), "--max-wait", "1h"]
        flags += [
            "--max-queue-depth",
            str(2 * options.requests),
            "--max-queue-total",
            str(2 * options.requests),
        ]
        flags += ["--max-connections", str(2 * options.requests), "--log-level", "error"]
        flags += ["--default-model", options.model.name, "--share-tokens", str(options.share_tokens)]
        if options.fake is not None:
            flags += ["--engine", "fake", "--fake", options.fake]
        headers = "", ""
        if keys:
            file = Path(name) / "keys.yaml"
            headers = _key(file, "crowd"), _key(file, "single")
            flags += ["--keys-file", str(file)]
        with modeld(*flags, *shlex.split(options.modeld), models_dir=options.model.parent) as server:
            yield server, headers


def _key(file: Path, name: str) -> str:
    """Make a key; return the header that carries it."""
    command = [sys.executable, "-m", "modeld", "keys", "add", name, "--keys-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise BenchError(f"no key could be made: {done.stderr.strip()}")
    return f"Authorization: Bearer {done.stdout.strip()}\r\n"


class _Client:
    """One request on a socket of its own."""

    def __init__(self, port: int, header: str, **body: object) -> None:
        data = json.dumps({"prompt": _PROMPT, "temperature": 0, "ignore_eos": True, **body})
        head = f"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{header}"
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n{data}".encode())
        self.data = b""
        self.first: float | None = None
        self.told: float | None = None

    def receive(self) -> bool:
        """Take what is there, and note when the first token came.

        Returns: whether more may come. Raises: BenchError for a refusal.
        """
        data = self.socket.recv(_READ_BYTES)
        self.data += data
        if self.told is None and _EVENT in self.data:
            self.told = time.perf_counter()
        if self.first is None and _TOKEN in self.data:
            self.first = time.perf_counter()
        status = self.data[9:12]
        if len(status) == 3 and status != b"200":
            raise BenchError(f"a request was refused: {self.data[-300:].decode(errors='replace')}")
        return bool(data)


def _measure(port: int, options: argparse.Namespace, crowd: str, single: str) -> Found:
    """Fill the queue, send the single request, and wait for its first token."""
    warm = _Client(port, crowd, max_tokens=1, stream=False)
    with warm.socket:
        while b'"done":true' not in warm.data:
            if not warm.receive():
                raise BenchError("the daemon closed a connection")
    began = time.perf_counter()
    clients = [_Client(port, crowd, max_tokens=options.max_tokens) for _ in range(options.requests)]
    asker: _Client | None = None
    came = began
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        try:
            while asker is None or asker.first is None:
                if time.perf_counter() > came + options.patience:
                    break
                for key, _ in selector.select(1.0):
                    if not key.data.receive():
                        selector.unregister(key.fileobj)
                if asker is None and sum(client.first is not None for client in clients) >= _BEGUN:
                    came = time.perf_counter()
                    asker = _Client(port, single, max_tokens=options.max_tokens, events=True)
                    selector.register(asker.socket, selectors.EVENT_READ, asker)
        finally:
            for client in (*clients, *([asker] if asker else [])):
                client.socket.close()
    if asker is None:
        raise BenchError(f"{_BEGUN} requests of the crowd did not begin within {options.patience} s")
    return _found(asker, clients, began, came, keys=bool(single))


def _found(asker: _Client, crowd: Sequence[_Client], began: float, came: float, *, keys: bool) -> Found:
    position, eta_s = _queued(asker.data)
    told = asker.told or came
    starts = [client.first for client in crowd if client.first is not None]
    return Found(
        keys=keys,
        position=position,
        eta_s=eta_s,
        told_s=told - came,
        first_token_s=None if asker.first is None else asker.first - came,
        before=sum(told < start and (asker.first is None or start <= asker.first) for start in starts),
        rate=sum(start <= came for start in starts) / (came - began),
    )


def _queued(data: bytes) -> tuple[int, float | None]:
    """Return the position that a stream told first, and the estimate; 0 if it never had to wait."""
    at = data.find(_EVENT)
    if at < 0:
        return 0, None
    event = json.loads(data[at : data.index(b"}", at) + 1])
    eta_ms = event.get("eta_ms")
    return event["position"], None if eta_ms is None else eta_ms / 1000
