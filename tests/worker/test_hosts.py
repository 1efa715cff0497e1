# SPDX-License-Identifier: GPL-3.0-only
"""The contract of a worker host, over every host there is: messages, cancels, ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import trio
from support.inline_worker import InlineWorker
from support.worker_listener import PATIENCE_S, WorkerListener, load_spec, request

from modeld.domain.request_events import FinishReason
from modeld.engine.protocol import RequestAdmitted, RequestDone, TokenOutput
from modeld.errors import EngineFailed
from modeld.worker.host import Worker
from modeld.worker.messages import (
    CancelRequest,
    Close,
    FromWorker,
    Progress,
    SetThreads,
    StepDone,
    SubmitRequest,
    WorkerDied,
    WorkerLoadFailed,
    WorkerReady,
    WorkerStopped,
)
from modeld.worker.process_host import ProcessWorker
from modeld.worker.thread_host import ThreadWorker

pytestmark = pytest.mark.process

HOSTS = [
    pytest.param(InlineWorker, id="inline"),
    pytest.param(ThreadWorker, id="thread"),
    pytest.param(ProcessWorker, id="process"),
]


async def use(host: type, script: str, scene: Callable[[Worker, WorkerListener], object]) -> list[FromWorker]:
    """Run a worker alongside a scene of a test; the worker must end by itself within the patience."""
    listener = WorkerListener()
    worker: Worker = host(load_spec(script), listener)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            await scene(worker, listener)
    return listener.heard


@pytest.mark.parametrize("host", HOSTS)
async def test_a_good_life(host: type) -> None:
    """Progress, Ready, the steps of a request in order, Stopped as the last word."""

    async def scene(worker: Worker, listener: WorkerListener) -> None:
        await listener.ready()
        worker.send(SetThreads(1))
        worker.send(SubmitRequest(7, request()))
        await listener.until(lambda: any(isinstance(output, RequestDone) for output in listener.outputs(7)))
        worker.send(Close())

    heard = await use(host, "", scene)
    kinds = [type(message) for message in heard]
    assert kinds[: kinds.index(WorkerReady)] == [Progress] * kinds.index(WorkerReady)
    assert kinds[-1] is WorkerStopped
    assert kinds.count(WorkerStopped) == 1
    outputs = [output for message in heard if isinstance(message, StepDone) for output in message.outputs]
    assert [type(output) for output in outputs] == [
        RequestAdmitted,
        TokenOutput,
        TokenOutput,
        TokenOutput,
        RequestDone,
    ]


@pytest.mark.parametrize("host", HOSTS)
async def test_a_cancel_acts_while_others_run(host: type) -> None:
    """The cancelled one is Done with that reason; its neighbour runs to its end."""

    async def scene(worker: Worker, listener: WorkerListener) -> None:
        await listener.ready()
        worker.send(SubmitRequest(1, request(max_tokens=100_000)))
        worker.send(SubmitRequest(2, request(max_tokens=20)))
        await listener.until(lambda: len(listener.outputs(1)) > 3)
        worker.send(CancelRequest(1))
        await listener.until(lambda: any(isinstance(output, RequestDone) for output in listener.outputs(2)))
        await listener.until(lambda: any(isinstance(output, RequestDone) for output in listener.outputs(1)))
        last = listener.outputs(1)[-1]
        assert isinstance(last, RequestDone)
        assert last.reason is FinishReason.CANCELLED
        worker.stop()

    await use(host, "step_s=0.001", scene)


@pytest.mark.parametrize("host", HOSTS)
async def test_an_urgent_cancel_does_not_wait_for_a_long_prefill(host: type) -> None:
    """A prefill of a thousand seconds in one step is interrupted."""

    async def scene(worker: Worker, listener: WorkerListener) -> None:
        await listener.ready()
        worker.send(SubmitRequest(1, request("w " * 1000)))
        await listener.until(lambda: len(listener.outputs(1)) == 1)
        worker.send(CancelRequest(1, urgent=True))
        await listener.until(lambda: any(isinstance(output, RequestDone) for output in listener.outputs(1)))
        worker.stop()

    heard = await use(host, "prefill_s=1 chunk=1000", scene)
    assert isinstance(heard[-1], WorkerStopped)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("script", ["load_s=1000", "stall_at=1", "prefill_s=1000"])
async def test_stop_ends_whatever_it_does(host: type, script: str) -> None:
    """A load, a stalled step, a long prefill: each gives way to stop, and Stopped is said."""

    async def scene(worker: Worker, listener: WorkerListener) -> None:
        if "load_s" in script:
            await listener.until(lambda: len(listener.heard) > 0)
        else:
            await listener.ready()
            worker.send(SubmitRequest(1, request()))
            await listener.until(lambda: len(listener.outputs(1)) == 1)
        worker.stop()

    heard = await use(host, script if "load_s" not in script else "load_s=30", scene)
    assert isinstance(heard[-1], WorkerStopped)


@pytest.mark.parametrize("host", HOSTS)
async def test_a_failed_load_says_why(host: type) -> None:
    """LoadFailed with the engine's sentence is the last word, and `run` returns."""

    async def scene(_worker: Worker, listener: WorkerListener) -> None:
        await listener.until(
            lambda: isinstance(listener.heard[-1], WorkerLoadFailed) if listener.heard else False
        )

    heard = await use(host, "fail_load=no_such_luck", scene)
    assert isinstance(heard[-1], WorkerLoadFailed)
    assert heard[-1].problem.message == "no such luck"


@pytest.mark.parametrize("host", HOSTS)
async def test_a_death_says_why(host: type) -> None:
    """Died is the last word of an engine that broke; messages after it are dropped."""

    async def scene(worker: Worker, listener: WorkerListener) -> None:
        await listener.ready()
        worker.send(SubmitRequest(1, request()))
        await listener.until(lambda: isinstance(listener.heard[-1], WorkerDied))
        worker.send(SubmitRequest(2, request()))

    heard = await use(host, "die_at=2", scene)
    assert isinstance(heard[-1], WorkerDied)


@pytest.mark.parametrize("host", HOSTS)
async def test_cancellation_takes_the_worker_along(host: type) -> None:
    """A cancelled `run` returns promptly, with the worker stopped and its thread at rest."""
    listener = WorkerListener()
    worker: Worker = host(load_spec("prefill_s=1000"), listener)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            await listener.ready()
            worker.send(SubmitRequest(1, request()))
            await listener.until(lambda: len(listener.outputs(1)) == 1)
            nursery.cancel_scope.cancel()
    assert not [thread for thread in threading.enumerate() if thread.name == "modeld m"]


@pytest.mark.parametrize("host", [InlineWorker, ProcessWorker])
@pytest.mark.parametrize("script", ["load_s=30", "stall_at=1", "step_s=0.001"])
async def test_what_is_killed_dies_of_the_reason_given(host: type, script: str) -> None:
    """Whatever it does: `kill` says that it can, and Died tells the reason."""
    reason = EngineFailed("it hung").as_problem()

    async def scene(worker: Worker, listener: WorkerListener) -> None:
        if "load_s" in script:
            await listener.until(lambda: len(listener.heard) > 0)
        else:
            await listener.ready()
            worker.send(SubmitRequest(1, request(max_tokens=100_000)))
            await listener.until(lambda: len(listener.outputs(1)) >= 1)
        assert worker.kill(reason)

    heard = await use(host, script, scene)
    assert heard[-1] == WorkerDied(reason)


async def test_a_thread_says_that_it_cannot_be_killed() -> None:
    """It goes on, and ends when it is asked to."""

    async def scene(worker: Worker, listener: WorkerListener) -> None:
        await listener.ready()
        assert not worker.kill(EngineFailed("it hung").as_problem())
        worker.stop()

    heard = await use(ThreadWorker, "", scene)
    assert isinstance(heard[-1], WorkerStopped)
