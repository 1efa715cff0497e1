# SPDX-License-Identifier: GPL-3.0-only
"""Inject faults that need a daemon of their own: its death, a clock that jumps, files that cannot grow."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from soaking import procfs
from soaking.daemon import SETTLE_S, SoakDaemon, soak_daemon
from soaking.http_client import Response
from soaking.results import FaultResult, is_complete, outcome, protocol_errors

JUMPS_S = {"a year ahead": 365 * 86400.0, "an hour back": -3600.0, "to 1970": -1.79e9}
_TOKENS = 40
_SHIFTED = Path(__file__).with_name("shifted_clock.py")


async def kill_daemon(seed: int) -> FaultResult:
    """SIGKILL to the daemon, while one worker decodes and another one is stopped: nothing of it stays."""
    complaints: list[str] = []
    with soak_daemon(seed=seed) as here:
        await here.start()
        model = await here.fresh_model()
        call = await here.begin(model, tokens=400)
        await call.until(3)
        workers = procfs.children(here.pid)
        os.kill(workers[0], signal.SIGSTOP)
        began = time.perf_counter()
        here.process.kill()
        await call.finish()
        with trio.move_on_after(SETTLE_S):
            while not all(procfs.is_gone(pid) for pid in workers):  # noqa: ASYNC110  # these are not our children: nothing tells of their end
                await trio.sleep(0.01)
        left = [pid for pid in workers if not procfs.is_gone(pid)]
        if left:
            complaints.append(f"workers outlive their daemon: {left}")
        gone_s = time.perf_counter() - began
    if call.whole:
        complaints.append("a stream of a daemon that was killed ended as if all were well")
    return FaultResult(
        "SIGKILL to the daemon", "decode", outcome(call), "all of it", gone_s, tuple(complaints)
    )


async def shift_clock(seed: int, names: Sequence[str] = tuple(JUMPS_S)) -> list[FaultResult]:
    """Set the wall clock while a model loads, decodes, and is kept: nothing notices but the time it shows."""
    rows: list[FaultResult] = []
    with tempfile.TemporaryDirectory() as place:
        clock = Path(place, "clock")
        _set(clock, 0)
        with soak_daemon(seed=seed, program=(str(_SHIFTED), str(clock))) as here:
            await here.start()
            rows += [await _jump(here, clock, name, JUMPS_S[name]) for name in names]
            here.stop()
    return rows


def _set(clock: Path, seconds: float) -> None:
    """Let the clock be wrong by so much from now on."""
    fresh = clock.with_suffix(".new")
    fresh.write_text(str(seconds))
    fresh.replace(clock)


async def _jump(here: SoakDaemon, clock: Path, name: str, seconds: float) -> FaultResult:
    complaints, model = list[str](), await here.fresh_model()
    async with here.bystander(complaints):
        before = await here.status()
        call = await here.begin(model, tokens=_TOKENS, keep_alive="1h", timeout="10m")
        await here.until_mapped(model)
        _set(clock, seconds)
        await call.until(5)
        _set(clock, 0)
        await call.until(10)
        _set(clock, seconds)
        began = time.perf_counter()
        await call.finish()
        shown = await here.status()
        again = await here.ask(model, tokens=3)
        recovery = time.perf_counter() - began
    complaints += protocol_errors(call)
    if not is_complete(call, _TOKENS) or not is_complete(again, 3):
        complaints.append(
            f"the clock jumped, and a stream ended by {outcome(call)} {call.last}, {outcome(again)}"
        )
    if abs(shown["server_time_unix"] - before["server_time_unix"] - seconds) > 600:
        complaints.append("the clock did not jump")
    if not 0 <= shown["uptime_seconds"] - before["uptime_seconds"] < 600:
        complaints.append(f"the uptime jumped: {before['uptime_seconds']} to {shown['uptime_seconds']}")
    if (await here.row(model))["state"] != "ready":
        complaints.append("a model that was to be kept for an hour went with the clock")
    stats: dict[str, float | None] = call.last.get("stats") or {}
    if any(not 0 <= float(value or 0) < 600_000 for value in stats.values()):
        complaints.append(f"durations jumped: {stats}")
    complaints += await here.idle_problems()
    _set(clock, 0)
    here.remove(model)
    return FaultResult(f"clock {name}", "load, decode", outcome(call), "nothing", recovery, tuple(complaints))


async def stop_under_load(seed: int) -> FaultResult:
    """SIGTERM while one model decodes and another one loads: legal last lines, exit code 0."""
    complaints: list[str] = []
    with soak_daemon(seed=seed) as here:
        await here.start()
        decoding, loading = await here.fresh_model(), await here.fresh_model()
        first = await here.begin(decoding, tokens=800)
        await first.until(3)
        second = await here.begin(loading, tokens=800)
        await here.until(loading, state="loading")
        began = time.perf_counter()
        here.process.send_signal(signal.SIGTERM)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.finish)
            nursery.start_soon(second.finish)
        code = await trio.to_thread.run_sync(here.process.wait, 40.0)
        took = time.perf_counter() - began
    complaints += protocol_errors(first) + protocol_errors(second)
    if code != 0:
        complaints.append(f"the daemon exited with {code}")
    if first.last.get("finish_reason") != "shutdown":
        complaints.append(f"the stream ended by {first.last}")
    seen = f"finish_reason shutdown; {outcome(second)}"
    return FaultResult(
        "SIGTERM to the daemon", "load, decode", seen, "what did not end in time", took, tuple(complaints)
    )


async def start_without_files(seed: int) -> FaultResult:
    """No file may grow from the first moment on: it starts and serves without a log."""
    complaints: list[str] = []
    with soak_daemon(seed=seed, env={"PYTHONDONTWRITEBYTECODE": "1"}) as here:
        await here.start()
        resource.prlimit(here.pid, resource.RLIMIT_FSIZE, (0, 0))
        model = await here.fresh_model()
        began = time.perf_counter()
        call: Response = await here.ask(model, tokens=8)
        took = time.perf_counter() - began
        complaints += protocol_errors(call)
        if not is_complete(call, 8):
            complaints.append(f"without files a request was not served: {outcome(call)} {call.last}")
        complaints += await here.idle_problems()
        if here.stop() != 0:
            complaints.append("the daemon cannot stop without a log")
    return FaultResult(
        "disk full (all files)", "load, stop", outcome(call), "the log", took, tuple(complaints)
    )


Fault = Callable[[int], Awaitable[FaultResult | list[FaultResult]]]
ALL: tuple[Fault, ...] = (kill_daemon, shift_clock, stop_under_load, start_without_files)
