# SPDX-License-Identifier: GPL-3.0-only
"""What is measured, behind one interface: given prompts, bring all streams of tokens at once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from benchmark.daemon import BenchError, Server, environment, loopback, modeld, piped, post
from benchmark.figures import Stream

HERE = Path(__file__).resolve().parent
DEADLINE_S = 300.0
"""No measurement takes longer: one with streams that have not ended by then fails."""


class Setup(NamedTuple):
    """What all systems of a run have in common."""

    model: Path
    slots: int
    ctx: int
    threads: int
    ubatch: int = 512


class Target(NamedTuple):
    """A server on 127.0.0.1, and how to ask it."""

    name: str
    port: int
    path: str
    model: str


class System(Protocol):
    """One of them."""

    name: str
    pids: list[int]

    def streams(self, prompts: Sequence[str], max_tokens: int) -> list[Stream]:
        """Send all prompts at once and return what came. Raises: BenchError."""
        ...


class Bare:
    """The bare loop in its child process."""

    name = "bare loop"

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._to, self._from = piped(process.stdin), piped(process.stdout)
        self.pids = [process.pid]

    def ask(self, **command: Any) -> Any:
        """Send one command of bare.py and return its answer."""
        try:
            self._to.write(json.dumps(command) + "\n")
            self._to.flush()
            line = self._from.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchError(f"the bare loop ended with {self._process.wait()}; see its words above")
        return json.loads(line)

    def close(self) -> None:
        """Have it end: by the end of its input, or else by force."""
        self._to.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._from.close()

    def streams(self, prompts: Sequence[str], max_tokens: int) -> list[Stream]:
        """See System."""
        streams: list[Stream] = self.ask(run={"prompts": list(prompts), "max_tokens": max_tokens})
        return streams


@contextlib.contextmanager
def bare(setup: Setup) -> Generator[Bare]:
    """Load the model in a child process."""
    command = [sys.executable, "-P", str(HERE / "bare.py")]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    loop = Bare(process)
    try:
        loop.ask(open={**setup._asdict(), "model": str(setup.model)})
        yield loop
    finally:
        loop.close()


class Http:
    """A server, and the way to ask it: `modeld` for /infer, `openai` for /v1/completions."""

    def __init__(
        self, name: str, dialect: str, *, port: int, path: str, model: str, pids: Sequence[int] = ()
    ) -> None:
        self.name = name
        self.pids = list(pids)
        self._dialect = dialect
        self._port = port
        self._path = path
        self._model = model

    def target(self) -> Target:
        """Return how to ask it one request at a time."""
        return Target(self.name, self._port, self._path, self._model)

    def request(self, prompt: str, max_tokens: int) -> str:
        """Return the HTTP request for one greedy stream of exactly `max_tokens` tokens."""
        body: dict[str, object] = {"model": self._model, "prompt": prompt, "max_tokens": max_tokens}
        body |= {"temperature": 0, "ignore_eos": True, "stream": True}
        if self._dialect == "openai":
            body["stream_options"] = {"include_usage": True}
        return post(self._port, self._path, body)

    def streams(self, prompts: Sequence[str], max_tokens: int) -> list[Stream]:
        """See System. A load generator is started for it, and its start is not measured."""
        job = {
            "host": "127.0.0.1",
            "port": self._port,
            "dialect": self._dialect,
            "requests": [self.request(prompt, max_tokens) for prompt in prompts],
            "deadline_s": DEADLINE_S,
        }
        command = [sys.executable, "-I", "-S", str(HERE / "client.py")]
        done = subprocess.run(
            command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * DEADLINE_S,
        )
        if done.returncode != 0:
            raise BenchError(f"the load generator for {self.name} failed:\n{done.stderr[-2000:]}")
        streams: list[Stream] = json.loads(done.stdout)
        return streams


def served(server: Server, model: str, name: str = "modeld") -> Http:
    """Return a running modeld as a system."""
    return Http(name, "modeld", port=server.port, path="/infer", model=model, pids=[server.process.pid])


@contextlib.contextmanager
def own_modeld(setup: Setup, extra: Sequence[str] = (), isolation: str = "") -> Generator[Http]:
    """Start modeld with these slots, cells and threads, and defaults for the rest."""
    flags = ["--llama-slots", str(setup.slots), "--llama-ctx", str(setup.ctx)]
    flags += ["--llama-threads", str(setup.threads), "--max-queue-depth", str(max(32, setup.slots))]
    if isolation:
        flags += ["--isolation", isolation]
    with modeld(*flags, *extra, models_dir=setup.model.parent) as server:
        yield served(server, setup.model.name, f"modeld {isolation}".strip())


def at_url(url: str, model: str) -> Http:
    """Return any server with `/v1/completions` as a system. Raises: BenchError when it is not on loopback."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise BenchError(f"{url} is no http:// address")
    loopback(parts.hostname)
    path = parts.path.rstrip("/")
    path += (
        "" if path.endswith("/completions") else "/completions" if path.endswith("/v1") else "/v1/completions"
    )
    return Http(parts.netloc, "openai", port=parts.port or 80, path=path, model=model)
