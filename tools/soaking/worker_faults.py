# SPDX-License-Identifier: GPL-3.0-only
"""Inject faults of a worker: signals at each moment of its life, aborts of llama.cpp, no more memory."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import trio

from soaking import procfs
from soaking.daemon import SoakDaemon
from soaking.http_client import Response
from soaking.results import FaultResult, is_complete, lost_work, outcome, protocol_errors

SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGILL, signal.SIGABRT, signal.SIGSTOP)
MOMENTS = ("load", "prefill", "decode", "unload")
ABORTS = ("load", "prefill")
LIMITS = ("load", "prefill")
_LONG = "The quick brown fox jumps over the lazy dog near the old stone bridge. "
_PROMPT_TURNS = 55
"""Some 800 tokens: a prefill of half a second or more."""
_TOKENS = 150
_ASSERTED = {"load": b"llama.block_count", "prefill": b"blk.0.attn_norm.weight"}
_I32 = 26
"""GGML_TYPE_I32: as long as F32, and nothing that ggml multiplies by."""
_LAYERS = 1_000_000
"""More than LLAMA_MAX_LAYERS, which llama.cpp asserts."""


async def until_served(daemon: SoakDaemon, model: str, since: float, complaints: list[str]) -> float | None:
    """Ask the model until it is served, as `Retry-After` says; return the seconds since `since`."""
    call: Response | None = None
    with trio.move_on_after(90):
        while True:
            call = await daemon.ask(model, tokens=3)
            if is_complete(call, 3):
                return time.perf_counter() - since
            await trio.sleep(min(5.0, float(call.headers.get("retry-after", 1))))
    told_last = "nothing" if call is None else f"{outcome(call)}: {call.last.get('error')}"
    complaints.append(f"{model} did not recover; last seen: {told_last}")
    return None


async def signal_worker(daemon: SoakDaemon, number: signal.Signals, when: str) -> FaultResult:
    """Send a signal to a worker at a moment of its life.

    A client that has some text gets a last line with the reason; all others are served, only later.
    """
    model, complaints = await daemon.fresh_model(), list[str]()
    async with daemon.bystander(complaints):
        began, call, hit = await _at(daemon, model, number, when)
        if when != "unload":
            await call.finish()
        complaints += protocol_errors(call)
        if when == "unload":
            await daemon.until(model, state="stopped")
        recovery = await until_served(daemon, model, began, complaints)
        last = str((await daemon.row(model)).get("last_error") or "")
    name = "hangs" if number is signal.SIGSTOP else number.name
    told_of = call.last.get("code") == 500 and bool(call.text) and name in str(call.last.get("error"))
    if not told_of and not is_complete(call, call_tokens(when)):
        complaints.append(f"a death was neither unseen nor told: {outcome(call)}: {call.last.get('error')}")
    if when == "decode":
        hit = told_of
    if when == "load":
        hit = "loaded" in last
    daemon.remove(model)
    return FaultResult(number.name, when, outcome(call), lost_work(call), recovery, tuple(complaints), hit)


def call_tokens(when: str) -> int:
    """Return how many tokens are asked for at that moment."""
    return _TOKENS if when == "decode" else 4


async def _at(
    daemon: SoakDaemon, model: str, number: signal.Signals, when: str
) -> tuple[float, Response, bool]:
    """Bring a model to the moment, and send the signal. Returns: when, its request, if it was in time."""
    if when == "unload":
        return await _unloading(daemon, model, number)
    if when == "load":
        call = await daemon.begin(model, tokens=4)
        pid = await daemon.until_mapped(model)
    else:
        await daemon.ask(model, tokens=1)
        long = {"prompt": _LONG * _PROMPT_TURNS} if when == "prefill" else {}
        call = await daemon.begin(model, tokens=call_tokens(when), **long)
        pid = await daemon.worker(model)
        if when == "prefill":
            await daemon.until(model, inflight=1)
        else:
            await call.until(3)
    began = time.perf_counter()
    os.kill(pid, number)
    return began, call, not call.ended


async def _unloading(daemon: SoakDaemon, model: str, number: signal.Signals) -> tuple[float, Response, bool]:
    """Stop an idle worker, so that it hears nothing; let its time pass; then send the signal."""
    keep = 1.0
    while True:
        call = await daemon.ask(model, tokens=4, keep_alive=f"{keep:g}s")
        pid = (await daemon.row(model)).get("pid")
        if isinstance(pid, int):
            os.kill(pid, signal.SIGSTOP)
            row = await _leaving(daemon, model)
            if row["state"] == "draining" and row.get("pid") == pid:
                break
            os.kill(pid, signal.SIGCONT)
        keep *= 2  # The machine is slow: it was gone before it could be stopped.
    began = time.perf_counter()
    os.kill(pid, number)
    if number is not signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
    return began, call, True


async def _leaving(daemon: SoakDaemon, model: str) -> dict[str, object]:
    while True:
        row = await daemon.row(model)
        if row["state"] != "ready":
            return row
        await trio.sleep(0.01)


async def abort_worker(daemon: SoakDaemon, when: str) -> FaultResult:
    """Have llama.cpp abort: its file is changed between the daemon's look at it and its own.

    In the load by more layers than it takes, in the first decode by a tensor that it cannot multiply by.
    """
    model, complaints = await daemon.fresh_model(copied=True), list[str]()
    path = daemon.folder / model
    await daemon.get("/models")
    async with daemon.bystander(complaints):
        call = await daemon.begin(model, tokens=4)
        pid = await daemon.worker(model)
        os.kill(pid, signal.SIGSTOP)
        hit = not procfs.maps(pid, model)
        _damage(path, _ASSERTED[when])
        began = time.perf_counter()
        os.kill(pid, signal.SIGCONT)
        await call.finish()
        decisions = (await daemon.status())["decisions"]
        deaths = [one["reason"] for one in decisions if one["model_id"] == model and one["action"] == "died"]
        daemon.put(path, "Q4_0", copied=True)
        recovery = await until_served(daemon, model, began, complaints)
    complaints += protocol_errors(call)
    if hit and not any("SIGABRT" in death for death in deaths):
        complaints.append(f"llama.cpp was to abort in the {when}; died: {deaths}, told: {call.last}")
    daemon.remove(model)
    lost = lost_work(call)
    return FaultResult(
        "llama.cpp aborts (GGML_ASSERT)", when, outcome(call), lost, recovery, tuple(complaints), hit
    )


def _damage(path: Path, name: bytes) -> None:
    """Change one number of the file's header in place (GGUF v3: key, type, value; name, dimensions, type).

    Its size and time of modification stay, or the worker would not have it loaded (`engine.load`).
    """
    was = path.stat()
    with path.open("r+b") as file:
        header = file.read(4 << 20)
        at = header.index(name) + len(name)
        if name.startswith(b"llama."):
            file.seek(at + 4)
            file.write(_LAYERS.to_bytes(4, "little"))
        else:
            file.seek(at + 4 + 8)
            file.write(_I32.to_bytes(4, "little"))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


async def limit_memory(daemon: SoakDaemon, when: str) -> FaultResult:
    """Let no more memory be had by a worker (RLIMIT_AS), from its start or from the middle of its life."""
    model, complaints = await daemon.fresh_model(), list[str]()
    if when == "prefill":
        await daemon.ask(model, tokens=1)
    async with daemon.bystander(complaints):
        loading = await daemon.begin(model, tokens=4) if when == "load" else None
        pid = await daemon.worker(model)
        began = time.perf_counter()
        bound = procfs.address_space(pid) + (1 << 20)
        resource.prlimit(pid, resource.RLIMIT_AS, (bound, bound))
        # More than the cells of a slot: llama.cpp asserts that it gets the memory for others.
        call = loading or await daemon.begin(model, tokens=4, prompt=_LONG * _PROMPT_TURNS)
        await call.finish()
        recovery = await until_served(daemon, model, began, complaints)
        row = await daemon.row(model)
    complaints += protocol_errors(call)
    daemon.remove(model)
    lost = lost_work(call)
    hit = bool(row.get("restarts") or row.get("last_error"))
    return FaultResult(
        "no more memory (RLIMIT_AS)", when, outcome(call), lost, recovery, tuple(complaints), hit
    )
