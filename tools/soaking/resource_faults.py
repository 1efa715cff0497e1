# SPDX-License-Identifier: GPL-3.0-only
"""Inject faults of the machine around the daemon: no descriptor is left, no file can grow."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from collections.abc import Generator

import trio

from soaking import procfs
from soaking.daemon import SETTLE_S, SoakDaemon, SoakError
from soaking.http_client import Response, ask, connect, request_bytes
from soaking.results import FaultResult, is_complete, outcome
from soaking.worker_faults import until_served

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


async def no_descriptors(daemon: SoakDaemon) -> FaultResult:
    """Leave the daemon no descriptor: clients connect, and a model should load, while a stream goes on.

    What is there goes on; who comes waits and is served when there are descriptors again; it does not spin.
    """
    complaints, model = list[str](), await daemon.fresh_model()
    calls: list[Response] = []
    streams: list[trio.SocketStream] = []
    asked = await connect(daemon.port)
    await asked.send_all(request_bytes("/models", None)[:-2])  # All but its end: it is accepted and waits.
    await daemon.get("/models")
    async with daemon.bystander(complaints):
        with bounded(daemon.pid, resource.RLIMIT_NOFILE, procfs.first_free_descriptor(daemon.pid)):
            streams = [await connect(daemon.port) for _ in range(_WAITING)]
            for stream in streams:
                await stream.send_all(request_bytes("/healthz", None))
            used = procfs.cpu_seconds(daemon.pid)
            await trio.sleep(_WATCHED_S)
            used = procfs.cpu_seconds(daemon.pid) - used
            await asked.send_all(b"\r\n")
            early = Response(asked)
            await early.finish()
        began = time.perf_counter()
    calls = [await Response(stream).finish() for stream in streams]
    unserved = [call for call in calls if call.data != b"ok"]
    if unserved:
        complaints.append(f"{len(unserved)} of {_WAITING} who waited were not served: {outcome(unserved[0])}")
    if early.status != 200:
        complaints.append(f"a client that was there before was not served: {outcome(early)}")
    if model not in early.data.decode():
        complaints.append("models are gone from /models while no descriptor is left")
    if used > _SPIN_S:
        complaints.append(f"the daemon took {used:.1f} s of CPU in {_WATCHED_S:g} s without a descriptor")
    if "no connection can be accepted now" not in daemon.tail(400):
        complaints.append("the log does not tell that descriptors are short")
    recovery = await until_served(daemon, model, began, complaints)
    daemon.remove(model)
    return FaultResult(
        "no descriptor is left (EMFILE)", "accept", "an answer, later", "nothing", recovery, tuple(complaints)
    )


async def no_process(daemon: SoakDaemon) -> FaultResult:
    """Let a model be asked for while the daemon has no descriptor for its worker."""
    complaints, model = list[str](), await daemon.fresh_model()
    await daemon.get("/models")
    stream = await connect(daemon.port)
    body = request_bytes("/infer", {"model": model, "prompt": "Once", "max_tokens": 3, "temperature": 0})
    await stream.send_all(body[:-1])
    await daemon.get("/models")  # By now the first connection has its descriptor.
    async with daemon.bystander(complaints):
        with bounded(daemon.pid, resource.RLIMIT_NOFILE, procfs.first_free_descriptor(daemon.pid)):
            began = time.perf_counter()
            await stream.send_all(body[-1:])
            call = await Response(stream).finish()
    error = str(call.last.get("error"))
    if call.status != 503 or "no process could be started" not in error:
        complaints.append(f"a model without a process: {outcome(call)}: {error}")
    recovery = await until_served(daemon, model, began, complaints)
    daemon.remove(model)
    return FaultResult(
        "no descriptor is left (EMFILE)", "load", outcome(call), "1 request", recovery, tuple(complaints)
    )


async def disk_full(daemon: SoakDaemon) -> FaultResult:
    """Let no file of the daemon grow (EFBIG, as ENOSPC): its log is lost, its service is not."""
    complaints, model = list[str](), await daemon.fresh_model()
    logged = {"path": "/infer?log=debug"}
    async with daemon.bystander(complaints):
        with bounded(daemon.pid, resource.RLIMIT_FSIZE, daemon.log.stat().st_size):
            size = daemon.log.stat().st_size
            began = time.perf_counter()
            call = await ask(daemon.port, _body(model), logged["path"])
            if not is_complete(call, 3):
                complaints.append(f"without a log a request was not served: {outcome(call)}")
            if daemon.log.stat().st_size != size:
                raise SoakError("the log grew, although no file could")
    await _logged_again(daemon, model, size, complaints)
    recovery = await until_served(daemon, model, began, complaints)
    daemon.remove(model)
    return FaultResult(
        "disk full (the log)", "load, decode", outcome(call), "log lines", recovery, tuple(complaints)
    )


def _body(model: str) -> dict[str, object]:
    return {"model": model, "prompt": "Once", "max_tokens": 3, "temperature": 0, "ignore_eos": True}


async def _logged_again(daemon: SoakDaemon, model: str, size: int, complaints: list[str]) -> None:
    """Wait until the log goes on and says how much of it is missing."""
    text = ""
    with trio.move_on_after(SETTLE_S):
        while True:
            await ask(daemon.port, _body(model), "/infer?log=info")
            text = daemon.log.read_bytes()[size:].decode(errors="replace")
            if "log lines lost" in text and "infer" in text:
                return
            await trio.sleep(0.05)
    complaints.append(f"the log does not go on and tell what is missing: {json.dumps(text[-300:])}")
