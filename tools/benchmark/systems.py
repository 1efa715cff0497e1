# SPDX-License-Identifier: GPL-3.0-only
"""What is measured, behind one interface: given prompts, return all streams of tokens, generated at once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from benchmark.clients import StreamingRequest
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


class System(Protocol):
    """One of them."""

    name: str
    pids: list[int]

    def streams(self, prompts: Sequence[str], max_tokens: int) -> list[Stream]:
        """Send all prompts at once and return what came. Raises: BenchError."""
        ...


class BareLoop:
    """The bare loop over llama.cpp in its child process."""

    name = "bare loop"

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._to, self._from = piped(process.stdin), piped(process.stdout)
        self.pids = [process.pid]

    def command(self, **words: Any) -> Any:
        """Send one command of bare_loop.py and return its answer."""
        try:
            self._to.write(json.dumps(words) + "\n")
            self._to.flush()
            line = self._from.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchError(f"the bare loop ended with {self._process.wait()}; see its output above")
        return json.loads(line)

    def close(self) -> None:
        """End it: by the end of its input, or else by force."""
        self._to.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._from.close()

    def streams(self, prompts: Sequence[str], max_tokens: int) -> list[Stream]:
        """See System."""
        streams: list[Stream] = self.command(run={"prompts": list(prompts), "max_tokens": max_tokens})
        return streams


@contextlib.contextmanager
def bare_loop(setup: Setup) -> Generator[BareLoop]:
    """Load the model in a child process."""
    command = [sys.executable, "-P", str(HERE / "bare_loop.py")]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    loop = BareLoop(process)
    try:
        loop.command(open={**setup._asdict(), "model": str(setup.model)})
        yield loop
    finally:
        loop.close()


class HttpSystem:
    """A server on 127.0.0.1, and how to ask it: `modeld` for /infer, `openai` for /v1/completions."""

    def __init__(
        self, name: str, dialect: str, *, port: int, path: str, model: str, pids: Sequence[int] = ()
    ) -> None:
        self.name = name
        self.pids = list(pids)
        self._dialect = dialect
        self._port = port
        self._path = path
        self._model = model

    def body(self, prompt: str, max_tokens: int) -> dict[str, object]:
        """Return the body for one greedy stream of exactly `max_tokens` tokens."""
        body: dict[str, object] = {"model": self._model, "prompt": prompt, "max_tokens": max_tokens}
        body |= {"temperature": 0, "ignore_eos": True, "stream": True}
        if self._dialect == "openai":
            body["stream_options"] = {"include_usage": True}
        return body

    def request(self, prompt: str, max_tokens: int) -> str:
        """Return the HTTP request for one greedy stream of exactly `max_tokens` tokens."""
        return post(self._port, self._path, self.body(prompt, max_tokens))

    def begin(self, prompt: str, max_tokens: int) -> StreamingRequest:
        """Send one such request, and return it to be read."""
        return StreamingRequest(self._port, self._path, self.body(prompt, max_tokens))

    def streams(self, prompts: Sequence[str], max_tokens: int) -> list[Stream]:
        """See System. A load generator is started for it, and its start is not measured."""
        requests = [self.request(prompt, max_tokens) for prompt in prompts]
        job = {"port": self._port, "requests": requests, "deadline_s": DEADLINE_S, "dialect": self._dialect}
        streams: list[Stream] = generate_load(streams=job)
        return streams


def generate_load(**job: Any) -> Any:
    """Run the load generator in a process of its own. Raises: BenchError when it fails."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(HERE / "load_generator.py")],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * DEADLINE_S,
    )
    if done.returncode != 0:
        raise BenchError(f"the load generator failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def served(server: Server, model: str, name: str = "modeld") -> HttpSystem:
    """Return a running modeld as a system."""
    return HttpSystem(name, "modeld", port=server.port, path="/infer", model=model, pids=[server.process.pid])


@contextlib.contextmanager
def own_modeld(setup: Setup, flags: Sequence[str] = (), isolation: str = "") -> Generator[HttpSystem]:
    """Start modeld with these slots, cells and threads, and defaults for the rest."""
    words = ["--llama-slots", str(setup.slots), "--llama-ctx", str(setup.ctx)]
    words += ["--llama-threads", str(setup.threads), "--max-queue-depth", str(max(32, setup.slots))]
    if isolation:
        words += ["--isolation", isolation]
    with modeld(*words, *flags, models_dir=setup.model.parent) as server:
        yield served(server, setup.model.name, f"modeld {isolation}".strip())


def at_url(url: str, model: str) -> HttpSystem:
    """Return any server with `/v1/completions` as a system. Raises: BenchError when it is not on loopback."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise BenchError(f"{url} is no http:// address")
    loopback(parts.hostname)
    path = parts.path.rstrip("/")
    if not path.endswith("/completions"):
        path += "/completions" if path.endswith("/v1") else "/v1/completions"
    return HttpSystem(parts.netloc, "openai", port=parts.port or 80, path=path, model=model)
