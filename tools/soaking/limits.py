# SPDX-License-Identifier: GPL-3.0-only
"""Faults of the machine around the daemon: no descriptor is left, no file can grow."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from collections.abc import Generator

import trio

from soaking import procfs
from soaking.process import SoakError
from soaking.rows import Row, is_served, told
from soaking.wire import Call, ask, connect, request_bytes
from soaking.workers import recover
from soaking.world import SETTLE_S, World

_WAITING = 40
"""Clients that connect while nobody can be accepted."""
_WATCHED_S = 2.0
_SPIN_S = 1.0
"""CPU seconds that a listener which spins takes for itself in that time, and one that waits does not."""


@contextlib.contextmanager
def bounded(pid: int, kind: int, soft: int) -> Generator[None]:
    """Hold another process to a soft limit meanwhile (prlimit(2))."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, before)


async def no_descriptors(world: World) -> Row:
    """Leave the daemon no descriptor: clients connect, and a model should load, while a stream goes on.

    What is there goes on; who comes waits and is served when there are descriptors again; it does not spin.
    """
    complaints, model = list[str](), await world.victim()
    calls: list[Call] = []
    streams: list[trio.SocketStream] = []
    asked = await connect(world.port)
    await asked.send_all(request_bytes("/models", None)[:-2])  # All but its end: it is accepted and waits.
    await world.get("/models")
    async with world.bystander(complaints):
        with bounded(world.pid, resource.RLIMIT_NOFILE, procfs.first_free_descriptor(world.pid)):
            streams = [await connect(world.port) for _ in range(_WAITING)]
            for stream in streams:
                await stream.send_all(request_bytes("/healthz", None))
            used = procfs.cpu_seconds(world.pid)
            await trio.sleep(_WATCHED_S)
            used = procfs.cpu_seconds(world.pid) - used
            await asked.send_all(b"\r\n")
            early = Call(asked)
            await early.finish()
        began = time.perf_counter()
    calls = [await Call(stream).finish() for stream in streams]
    unserved = [call for call in calls if call.data != b"ok"]
    if unserved:
        complaints.append(f"{len(unserved)} of {_WAITING} who waited were not served: {told(unserved[0])}")
    if early.status != 200:
        complaints.append(f"a client that was there before was not served: {told(early)}")
    if model not in early.data.decode():
        complaints.append("models are gone from /models while no descriptor is left")
    if used > _SPIN_S:
        complaints.append(f"the daemon took {used:.1f} s of CPU in {_WATCHED_S:g} s without a descriptor")
    if "no connection can be accepted now" not in world.tail(400):
        complaints.append("the log does not tell that descriptors are short")
    recovery = await recover(world, model, began, complaints)
    world.remove(model)
    return Row(
        "no descriptor is left (EMFILE)", "accept", "an answer, later", "nothing", recovery, tuple(complaints)
    )


async def no_process(world: World) -> Row:
    """Let a model be asked for while the daemon has no descriptor for its worker."""
    complaints, model = list[str](), await world.victim()
    await world.get("/models")
    stream = await connect(world.port)
    body = request_bytes("/infer", {"model": model, "prompt": "Once", "max_tokens": 3, "temperature": 0})
    await stream.send_all(body[:-1])
    await world.get("/models")  # By now the first connection has its descriptor.
    async with world.bystander(complaints):
        with bounded(world.pid, resource.RLIMIT_NOFILE, procfs.first_free_descriptor(world.pid)):
            began = time.perf_counter()
            await stream.send_all(body[-1:])
            call = await Call(stream).finish()
    error = str(call.last.get("error"))
    if call.status != 503 or "no process could be started" not in error:
        complaints.append(f"a model without a process: {told(call)}: {error}")
    recovery = await recover(world, model, began, complaints)
    world.remove(model)
    return Row("no descriptor is left (EMFILE)", "load", told(call), "1 request", recovery, tuple(complaints))


async def disk_full(world: World) -> Row:
    """Let no file of the daemon grow (EFBIG, as ENOSPC): its log is lost, its service is not."""
    complaints, model = list[str](), await world.victim()
    logged = {"path": "/infer?log=debug"}
    async with world.bystander(complaints):
        with bounded(world.pid, resource.RLIMIT_FSIZE, world.log.stat().st_size):
            size = world.log.stat().st_size
            began = time.perf_counter()
            call = await ask(world.port, _body(model), logged["path"])
            if not is_served(call, 3):
                complaints.append(f"without a log a request was not served: {told(call)}")
            if world.log.stat().st_size != size:
                raise SoakError("the log grew, although no file could")
    await _logged_again(world, model, size, complaints)
    recovery = await recover(world, model, began, complaints)
    world.remove(model)
    return Row("disk full (the log)", "load, decode", told(call), "log lines", recovery, tuple(complaints))


def _body(model: str) -> dict[str, object]:
    return {"model": model, "prompt": "Once", "max_tokens": 3, "temperature": 0, "ignore_eos": True}


async def _logged_again(world: World, model: str, size: int, complaints: list[str]) -> None:
    """Wait until the log goes on and says how much of it is missing."""
    text = ""
    with trio.move_on_after(SETTLE_S):
        while True:
            await ask(world.port, _body(model), "/infer?log=info")
            text = world.log.read_bytes()[size:].decode(errors="replace")
            if "log lines lost" in text and "infer" in text:
                return
            await trio.sleep(0.05)
    complaints.append(f"the log does not go on and tell what is missing: {json.dumps(text[-300:])}")
