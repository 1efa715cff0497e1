# SPDX-License-Identifier: GPL-3.0-only
"""Faults that need a daemon of their own: its death, a clock that jumps, a log that cannot be written."""

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
from soaking.rows import Row, faults_of, is_served, told
from soaking.wire import Call
from soaking.world import SETTLE_S, World, world

JUMPS_S = {"a year ahead": 365 * 86400.0, "an hour back": -3600.0, "to 1970": -1.79e9}
_TOKENS = 40
_SHIFTED = Path(__file__).with_name("shifted.py")


async def killed(seed: int) -> Row:
    """SIGKILL to the daemon, while one worker decodes and another one is stopped: nothing of it stays."""
    complaints: list[str] = []
    with world(seed=seed) as here:
        await here.start()
        model = await here.victim()
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
    return Row("SIGKILL to the daemon", "decode", told(call), "all of it", gone_s, tuple(complaints))


async def jumped(seed: int, names: Sequence[str] = tuple(JUMPS_S)) -> list[Row]:
    """Set the wall clock while a model loads, decodes, and is kept: nothing notices but the time it shows."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        clock = Path(place, "clock")
        _set(clock, 0)
        with world(seed=seed, program=(str(_SHIFTED), str(clock))) as here:
            await here.start()
            rows += [await _jump(here, clock, name, JUMPS_S[name]) for name in names]
            here.stop()
    return rows


def _set(clock: Path, seconds: float) -> None:
    """Let the clock be wrong by so much from now on."""
    fresh = clock.with_suffix(".new")
    fresh.write_text(str(seconds))
    fresh.replace(clock)


async def _jump(here: World, clock: Path, name: str, seconds: float) -> Row:
    complaints, model = list[str](), await here.victim()
    async with here.bystander(complaints):
        before = await here.status()
        call = await here.begin(model, tokens=_TOKENS, keep_alive="1h", timeout="10m")
        await here.mapped(model)
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
    complaints += faults_of(call)
    if not is_served(call, _TOKENS) or not is_served(again, 3):
        complaints.append(f"the clock jumped, and a stream ended by {told(call)} {call.last}, {told(again)}")
    if abs(shown["server_time_unix"] - before["server_time_unix"] - seconds) > 600:
        complaints.append("the clock did not jump")
    if not 0 <= shown["uptime_seconds"] - before["uptime_seconds"] < 600:
        complaints.append(f"the uptime jumped: {before['uptime_seconds']} to {shown['uptime_seconds']}")
    if (await here.row(model))["state"] != "ready":
        complaints.append("a model that was to be kept for an hour went with the clock")
    stats: dict[str, float | None] = call.last.get("stats") or {}
    if any(not 0 <= float(value or 0) < 600_000 for value in stats.values()):
        complaints.append(f"durations jumped: {stats}")
    complaints += await here.settled()
    _set(clock, 0)
    here.remove(model)
    return Row(f"clock {name}", "load, decode", told(call), "nothing", recovery, tuple(complaints))


async def stopped_under_load(seed: int) -> Row:
    """SIGTERM while one model decodes and another one loads: legal last lines, exit code 0."""
    complaints: list[str] = []
    with world(seed=seed) as here:
        await here.start()
        decoding, loading = await here.victim(), await here.victim()
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
    complaints += faults_of(first) + faults_of(second)
    if code != 0:
        complaints.append(f"the daemon exited with {code}")
    if first.last.get("finish_reason") != "shutdown":
        complaints.append(f"the stream ended by {first.last}")
    seen = f"finish_reason shutdown; {told(second)}"
    return Row(
        "SIGTERM to the daemon", "load, decode", seen, "what did not end in time", took, tuple(complaints)
    )


async def no_file_from_the_start(seed: int) -> Row:
    """No file may grow from the first moment on: it starts and serves without a log."""
    complaints: list[str] = []
    with world(seed=seed, env={"PYTHONDONTWRITEBYTECODE": "1"}) as here:
        await here.start()
        resource.prlimit(here.pid, resource.RLIMIT_FSIZE, (0, 0))
        model = await here.victim()
        began = time.perf_counter()
        call: Call = await here.ask(model, tokens=8)
        took = time.perf_counter() - began
        complaints += faults_of(call)
        if not is_served(call, 8):
            complaints.append(f"without files a request was not served: {told(call)} {call.last}")
        complaints += await here.settled()
        if here.stop() != 0:
            complaints.append("the daemon cannot stop without a log")
    return Row("disk full (all files)", "load, stop", told(call), "the log", took, tuple(complaints))


ALL: tuple[Callable[[int], Awaitable[Row | list[Row]]], ...] = (
    killed,
    jumped,
    stopped_under_load,
    no_file_from_the_start,
)
