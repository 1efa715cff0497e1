# SPDX-License-Identifier: GPL-3.0-only
"""Run a daemon with models of its own, and check that it is idle when no client asks.

Models are links to the real files under fresh names, so that no fault counts against the next one's model
(five deaths within a minute open the breaker). One of them, the bystander, is pinned and never touched: its
answers while others fail must be what they always are.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio
from testctl_lib.models import MODEL_STEM, model_folder

from soaking import procfs
from soaking.http_client import Response, ask, begin
from soaking.resources import Resources, not_released, resources_of, still_active

BYSTANDER = "bystander.gguf"
START_S = 60.0
STOP_S = 40.0
SETTLE_S = 60.0
"""What goes on when no client asks for anything is over by then, also on a slow machine."""
FLAGS = (
    *("--dry-runs=false", "--llama-ctx", "1024", "--llama-slots", "2", "--max-wait", "10m"),
    *("--stall-timeout", "12s"),  # an engine that is stopped is killed after so long
    *("--llama-ubatch", "64"),  # a chunk of a prompt takes less than that, also on a busy machine
)
_READY = 8
"""So many unused models lie in the folder, since a new file is noticed only after a second or two."""
_CONFIG = "models: {bystander: {pinned: true}}\n"


class SoakError(Exception):
    """The soak cannot go on; the message says what and why."""


def real_models() -> Path:
    """Return the folder of the real models. Raises: SoakError when they are not there."""
    given = os.environ.get("MODELD_TEST_MODELS")
    folder = Path(given) if given else model_folder()
    if not (folder / f"{MODEL_STEM}.Q4_0.gguf").exists():
        raise SoakError(
            f"the real models are not in {folder}; ./tools/testctl install fetches and makes them"
        )
    return folder


def prompt_of(
    model: str, prompt: str = "Once there was", tokens: int = 2, **more: object
) -> dict[str, object]:
    """Return a greedy request of so many tokens."""
    body: dict[str, object] = {"model": model, "prompt": prompt, "max_tokens": tokens}
    return body | {"temperature": 0, "ignore_eos": True} | more


class SoakDaemon:
    """A running daemon and its models.

    Attributes:
      pid, port: of the daemon.
      log: the file that has its standard error.
      folder: of its models.
      rng: source of everything that is drawn.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, log: Path, seed: int) -> None:
        self.process = process
        self.pid = process.pid
        self.port = 0
        self.log = log
        self.folder = folder
        self.rng = random.Random(seed)  # noqa: S311  # the same seed, the same run
        self.texts: dict[str, str] = {}
        self._source = real_models()
        self._made = 0
        self._ready: deque[str] = deque()
        self._idle: Resources | None = None

    def tail(self, lines: int = 30) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_until_listening(self) -> None:
        """Wait for its address. Raises: SoakError with the end of its log."""
        until = time.monotonic() + START_S
        while not (found := re.search(r"listens on \S+:(\d+)", self.log.read_text(errors="replace"))):
            if time.monotonic() > until or self.process.poll() is not None:
                raise SoakError(f"the daemon did not start:\n{self.tail()}")
            time.sleep(0.02)  # another process writes the log
        self.port = int(found[1])

    def stop(self) -> int:
        """Stop it with SIGTERM; return its exit code. Raises: SoakError when it does not go."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise SoakError(f"the daemon did not stop within {STOP_S:g} s:\n{self.tail()}") from None

    # --- models -----------------------------------------------------------------------------------

    async def fresh_model(self, quant: str = "Q4_0", *, copied: bool = False) -> str:
        """Return a model that nobody used; `copied`: with a file of its own, to harm. Raises: SoakError."""
        if quant == "Q4_0" and not copied:
            while len(self._ready) < _READY:
                self._ready.append(self._make(quant))
            name = self._ready.popleft()
        else:
            name = self._make(quant, copied=copied)
        with trio.move_on_after(SETTLE_S):
            while f'"{name}"'.encode() not in (await self.get("/models")).data:  # noqa: ASYNC110  # the daemon is another process: it is asked
                await trio.sleep(0.1)
            return name
        raise SoakError(f"{name} was put into the folder, and is not in /models")

    def _make(self, quant: str, *, copied: bool = False) -> str:
        self._made += 1
        name = f"victim-{self._made:05}.gguf"
        self.put(self.folder / name, quant, copied=copied)
        return name

    def put(self, path: Path, quant: str, *, copied: bool = False) -> None:
        """Make a file with a real model appear at a path, all at once."""
        source = self._source / f"{MODEL_STEM}.{quant}.gguf"
        fresh = path.with_suffix(".part")
        if copied:
            shutil.copyfile(source, fresh)
        else:
            fresh.symlink_to(source)
        fresh.replace(path)

    def remove(self, *names: str) -> None:
        """Take models away."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    # --- asking -----------------------------------------------------------------------------------

    async def begin(self, model: str, **more: Any) -> Response:
        """Send a request for text."""
        return await begin(self.port, prompt_of(model, **more))

    async def ask(self, model: str, **more: Any) -> Response:
        """Send a request for text and read its answer."""
        return await ask(self.port, prompt_of(model, **more))

    async def get(self, path: str) -> Response:
        """Return the answer to a GET."""
        return await ask(self.port, None, path)

    async def status(self) -> dict[str, Any]:
        """Return /status."""
        answer: dict[str, Any] = json.loads((await self.get("/status")).data)
        return answer

    async def row(self, model: str) -> dict[str, Any]:
        """Return a model's instance in /status; of one that never was, what can be said of it."""
        rows = [row for row in (await self.status())["instances"] if row["model_id"] == model]
        return rows[0] if rows else {"state": "stopped", "pid": None, "inflight": 0, "queue_len": 0}

    async def until(self, model: str, **wanted: object) -> dict[str, Any]:
        """Wait until a model's instance shows all these values. Raises: SoakError."""
        row: dict[str, Any] = {}
        with trio.move_on_after(SETTLE_S):
            while True:
                row = await self.row(model)
                if all(row.get(key) == value for key, value in wanted.items()):
                    return row
                await trio.sleep(0.01)
        raise SoakError(f"{model} never showed {wanted}; last seen: {row}")

    async def worker(self, model: str) -> int:
        """Wait until a model has a process, and return its number. Raises: SoakError."""
        with trio.move_on_after(SETTLE_S):
            while True:
                pid = (await self.row(model)).get("pid")
                if isinstance(pid, int):
                    return pid
                await trio.sleep(0.002)
        raise SoakError(f"{model} got no process within {SETTLE_S:g} s")

    async def until_mapped(self, model: str) -> int:
        """Wait until a model's process has its file before it, and return its number."""
        pid = await self.worker(model)
        with trio.move_on_after(SETTLE_S):
            while not procfs.maps(pid, self._seen_as(model)):
                if procfs.is_gone(pid):
                    return pid
                await trio.sleep(0.001)
        return pid

    def _seen_as(self, model: str) -> str:
        return os.path.realpath(self.folder / model) if (self.folder / model).exists() else model

    async def text_of(self, quant: str, **more: Any) -> str:
        """Return what an undisturbed model of this kind says to a request; asked once."""
        key = json.dumps([quant, more], sort_keys=True)
        if key not in self.texts:
            model = await self.fresh_model(quant)
            call = await self.ask(model, **more)
            if not call.text:
                raise SoakError(f"an undisturbed model says nothing: {call.status} {call.broken} {call.last}")
            self.texts[key] = call.text
            self.remove(model)
        return self.texts[key]

    # --- what must be true ------------------------------------------------------------------------

    @asynccontextmanager
    async def bystander(self, complaints: list[str]) -> AsyncGenerator[None]:
        """Let the bystander answer meanwhile; complain if its text is not what it always is."""
        call = await self._ask_bystander()
        yield
        await call.finish()
        if call.text != self.texts[BYSTANDER] or not call.whole:
            complaints.append(
                f"the stream of another model was disturbed: {call.status} {call.broken} {call.text!r}"
            )

    async def _ask_bystander(self) -> Response:
        call = await self.begin(BYSTANDER, prompt="The history of the sea begins", tokens=40)
        await call.until(1)
        return call

    async def _bystander_text(self) -> Response:
        return await (await self._ask_bystander()).finish()

    async def idle_problems(self) -> list[str]:
        """Wait until the daemon is idle, and return what did not come back to where it was."""
        found = ["it was never idle"]
        with trio.move_on_after(SETTLE_S):
            while found:
                found = await self._active()
                if found:
                    await trio.sleep(0.05)
        return found

    async def _active(self) -> list[str]:
        everything = await self.status()
        found = still_active(everything, procfs.children(self.pid))
        if (await self.get("/healthz")).data != b"ok":
            found.append("/healthz is not ok")
        if not found and self._idle is not None:
            found += not_released(self._idle, resources_of(self.pid, everything))
        return found

    async def start(self) -> None:
        """Load the bystander, and remember what the daemon holds when it is idle. Raises: SoakError."""
        await self._bystander_text()  # From the second time on its prompt is in the prefix cache.
        self.texts[BYSTANDER] = (await self._bystander_text()).text
        if not self.texts[BYSTANDER]:
            raise SoakError("the bystander does not answer")
        complaints = await self.idle_problems()
        if complaints:
            raise SoakError("; ".join(complaints))
        self._idle = resources_of(self.pid, await self.status())


@contextmanager
def soak_daemon(
    *flags: str, seed: int = 1, program: Sequence[str] = ("-m", "modeld"), env: dict[str, str] | None = None
) -> Generator[SoakDaemon]:
    """Run a daemon of this Python with a folder of its own; kill it at the end if it still runs."""
    with tempfile.TemporaryDirectory(prefix="modeld-soak-") as place:
        top = Path(place)
        folder, log, config = top / "models", top / "log", top / "modeld.yaml"
        folder.mkdir()
        config.write_text(_CONFIG)
        command = [sys.executable, *program, "serve", "--addr", "127.0.0.1:0", "--config", str(config)]
        command += ["--models-dir", str(folder), "--state-dir", str(top / "state"), *FLAGS, *flags]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MODELD_")}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=clean | (env or {})
            )
        try:
            made = SoakDaemon(process, folder, log, seed)
            made.put(folder / BYSTANDER, "Q8_0")
            made.wait_until_listening()
            yield made
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
