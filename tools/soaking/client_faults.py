# SPDX-License-Identifier: GPL-3.0-only
"""Inject faults of clients: many at once that leave at random moments, or stop reading."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from functools import partial

import trio

from soaking.daemon import SoakDaemon, prompt_of
from soaking.http_client import Response, begin, connect, request_bytes
from soaking.results import FaultResult, is_complete, outcome, protocol_errors
from soaking.worker_faults import until_served

_AT_ONCE = 12
_WAYS = ("close", "reset", "half")
_MODELS = 3
"""The budget has room for two of them."""
_SAID = "A word and a word and another word"
_STALLED = 3


async def clients_leave(daemon: SoakDaemon, count: int) -> FaultResult:
    """Let so many clients connect and leave at any moment, from before a byte is sent to after the last."""
    complaints, model = list[str](), await daemon.fresh_model()
    await daemon.ask(model, tokens=1)
    limit = trio.CapacityLimiter(_AT_ONCE)

    async def one(moment: float, way: str, tokens: int) -> None:
        async with limit:
            data = request_bytes("/infer", prompt_of(model, tokens=tokens))
            stream = await connect(daemon.port)
            call = Response(stream)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(data[: int(len(data) * min(1.0, moment))])
            if moment >= 1:
                with trio.move_on_after((moment - 1) / 4):
                    await call.until(tokens)
            await call.leave(way)

    async with daemon.bystander(complaints), trio.open_nursery() as nursery:
        for _ in range(count):
            moment, tokens = daemon.rng.random() * 2, daemon.rng.randrange(1, 12)
            nursery.start_soon(one, moment, daemon.rng.choice(_WAYS), tokens)
    began = time.perf_counter()
    recovery = await until_served(daemon, model, began, complaints)
    daemon.remove(model)
    seen = f"nothing: {_AT_ONCE} at once come and go"
    return FaultResult("clients leave", "at random", seen, "nothing", recovery, tuple(complaints))


async def clients_cancel(daemon: SoakDaemon, count: int) -> FaultResult:
    """Ask three models, for which there is no room at once, so many times, and leave at random or stay."""
    complaints = list[str]()
    models = [await daemon.fresh_model() for _ in range(_MODELS)]
    limit = trio.CapacityLimiter(_AT_ONCE)
    ends: Counter[str] = Counter()

    async def one(model: str, tokens: int, leaves_after: float | None) -> None:
        async with limit:
            call = await begin(daemon.port, prompt_of(model, prompt=_SAID, tokens=tokens))
            if leaves_after is not None:
                with trio.move_on_after(leaves_after):
                    await call.finish()
                    ends["served before it left"] += 1
                    return
                await call.leave(daemon.rng.choice(_WAYS[:2]))
                ends["left"] += 1
                return
            await call.finish()
            ends[outcome(call)] += 1
            complaints.extend(protocol_errors(call))
            if not is_complete(call, tokens):
                complaints.append(f"a request was not served: {outcome(call)}: {call.last.get('error')}")

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            leaves = daemon.rng.random() * 2 if daemon.rng.random() < 0.5 else None
            start = partial(one, daemon.rng.choice(models), daemon.rng.randrange(1, 17), leaves)
            nursery.start_soon(start)
    began = time.perf_counter()
    recovery = await until_served(daemon, models[0], began, complaints)
    daemon.remove(*models)
    seen = (
        "whole answers"
        if set(ends) <= {"left", "a whole answer", "served before it left"}
        else str(dict(ends))
    )
    fault = f"{_MODELS} models, memory for 2, cancels"
    return FaultResult(fault, "at random", seen, "nothing", recovery, tuple(dict.fromkeys(complaints)))


async def readers_stall(daemon: SoakDaemon) -> FaultResult:
    """Let clients ask for much and read nothing: their slots are free when the model has spoken."""
    complaints, model = list[str](), await daemon.fresh_model()
    tokens, calls = 150, list[Response]()
    async with daemon.bystander(complaints):
        for _ in range(_STALLED):
            body = prompt_of(model, tokens=tokens, logprobs=20)
            calls.append(await begin(daemon.port, body, receive_buffer=4096))
        began = time.perf_counter()
        recovery = await until_served(
            daemon, model, began, complaints
        )  # It waits in the queue behind all of them.
        with trio.move_on_after(60):
            while (await daemon.row(model)).get("inflight"):  # noqa: ASYNC110  # the daemon is another process: it is asked
                await trio.sleep(0.05)
        if (await daemon.row(model)).get("inflight"):
            complaints.append("clients that do not read keep their slots")
    for call in calls:
        await call.finish()
        complaints += protocol_errors(call)
        if not is_complete(call, tokens):
            complaints.append(
                f"a reader that stalled and went on lost something: {outcome(call)} {call.last}"
            )
    daemon.remove(model)
    return FaultResult("readers stall", "decode", "all of it, later", "nothing", recovery, tuple(complaints))
