# SPDX-License-Identifier: GPL-3.0-only
"""The contract of a worker host, over every host there is: messages, cancels, ends."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import trio
from support.inline import InlineWorker

from modeld.core.events import FinishReason
from modeld.core.models import EngineKind, LoadOptions
from modeld.core.request import GenerateRequest
from modeld.engine.protocol import Admitted, Done, LoadSpec, Output, Tokens
from modeld.worker.host import Worker
from modeld.worker.messages import (
    Cancel,
    Close,
    Died,
    FromWorker,
    LoadFailed,
    Progress,
    Ready,
    SetThreads,
    Step,
    Stopped,
    Submit,
)
from modeld.worker.thread import ThreadWorker

HOSTS = [pytest.param(InlineWorker, id="inline"), pytest.param(ThreadWorker, id="thread")]
PATIENCE_S = 10.0


class Ear:
    """Listens to a worker, and lets a test wait until it has said something."""

    def __init__(self) -> None:
        self.heard: list[FromWorker] = []
        self._more = trio.Event()

    def __call__(self, message: FromWorker) -> None:
        self.heard.append(message)
        self._more.set()

    async def until(self, found: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not found():
                self._more = trio.Event()
                await self._more.wait()

    async def ready(self) -> None:
        await self.until(lambda: any(isinstance(message, Ready) for message in self.heard))

    def outputs(self, request_id: int) -> list[Output]:
        steps = [message for message in self.heard if isinstance(message, Step)]
        return [output for step in steps for output in step.outputs if output.id == request_id]


def load_spec(script: str = "") -> LoadSpec:
    return LoadSpec(
        model_id="m", path="/m.gguf", kind=EngineKind.FAKE, fake=script, options=LoadOptions(slots=2)
    )


def request(prompt: str = "one two", max_tokens: int = 3) -> GenerateRequest:
    return GenerateRequest(prompt=prompt, max_tokens=max_tokens)


async def use(host: type, script: str, test: Callable[[Worker, Ear], object]) -> list[FromWorker]:
    """Run a worker beside a test; the worker must end by itself within the patience."""
    ear = Ear()
    worker: Worker = host(load_spec(script), ear)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            await test(worker, ear)
    return ear.heard


@pytest.mark.parametrize("host", HOSTS)
async def test_a_good_life(host: type) -> None:
    """Progress, Ready, the steps of a request in order, Stopped as the last word."""

    async def test(worker: Worker, ear: Ear) -> None:
        await ear.ready()
        worker.send(SetThreads(1))
        worker.send(Submit(7, request()))
        await ear.until(lambda: any(isinstance(output, Done) for output in ear.outputs(7)))
        worker.send(Close())

    heard = await use(host, "", test)
    kinds = [type(message) for message in heard]
    assert kinds[: kinds.index(Ready)] == [Progress] * kinds.index(Ready)
    assert kinds[-1] is Stopped
    assert kinds.count(Stopped) == 1
    outputs = [output for message in heard if isinstance(message, Step) for output in message.outputs]
    assert [type(output) for output in outputs] == [Admitted, Tokens, Tokens, Tokens, Done]


@pytest.mark.parametrize("host", HOSTS)
async def test_a_cancel_acts_while_others_run(host: type) -> None:
    """The cancelled one is Done with that reason; its neighbour runs to its end."""

    async def test(worker: Worker, ear: Ear) -> None:
        await ear.ready()
        worker.send(Submit(1, request(max_tokens=100_000)))
        worker.send(Submit(2, request(max_tokens=20)))
        await ear.until(lambda: len(ear.outputs(1)) > 3)
        worker.send(Cancel(1))
        await ear.until(lambda: any(isinstance(output, Done) for output in ear.outputs(2)))
        await ear.until(lambda: any(isinstance(output, Done) for output in ear.outputs(1)))
        last = ear.outputs(1)[-1]
        assert isinstance(last, Done)
        assert last.reason is FinishReason.CANCELLED
        worker.stop()

    await use(host, "step_s=0.001", test)


@pytest.mark.parametrize("host", HOSTS)
async def test_an_urgent_cancel_does_not_wait_for_a_long_prefill(host: type) -> None:
    """A prefill of a thousand seconds in one step is interrupted."""

    async def test(worker: Worker, ear: Ear) -> None:
        await ear.ready()
        worker.send(Submit(1, request("w " * 1000)))
        await ear.until(lambda: len(ear.outputs(1)) == 1)
        worker.send(Cancel(1, urgent=True))
        await ear.until(lambda: any(isinstance(output, Done) for output in ear.outputs(1)))
        worker.stop()

    heard = await use(host, "prefill_s=1 chunk=1000", test)
    assert isinstance(heard[-1], Stopped)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("script", ["load_s=1000", "stall_at=1", "prefill_s=1000"])
async def test_stop_ends_whatever_it_does(host: type, script: str) -> None:
    """A load, a stalled step, a long prefill: each gives way to stop, and Stopped is said."""

    async def test(worker: Worker, ear: Ear) -> None:
        if "load_s" in script:
            await ear.until(lambda: len(ear.heard) > 0)
        else:
            await ear.ready()
            worker.send(Submit(1, request()))
            await ear.until(lambda: len(ear.outputs(1)) == 1)
        worker.stop()

    heard = await use(host, script if "load_s" not in script else "load_s=30", test)
    assert isinstance(heard[-1], Stopped)


@pytest.mark.parametrize("host", HOSTS)
async def test_a_failed_load_says_why(host: type) -> None:
    """LoadFailed with the engine's sentence is the last word, and `run` returns."""

    async def test(_worker: Worker, ear: Ear) -> None:
        await ear.until(lambda: isinstance(ear.heard[-1], LoadFailed) if ear.heard else False)

    heard = await use(host, "fail_load=no_such_luck", test)
    assert isinstance(heard[-1], LoadFailed)
    assert heard[-1].problem.message == "no such luck"


@pytest.mark.parametrize("host", HOSTS)
async def test_a_death_says_why(host: type) -> None:
    """Died is the last word of an engine that broke; messages after it are dropped."""

    async def test(worker: Worker, ear: Ear) -> None:
        await ear.ready()
        worker.send(Submit(1, request()))
        await ear.until(lambda: isinstance(ear.heard[-1], Died))
        worker.send(Submit(2, request()))

    heard = await use(host, "die_at=2", test)
    assert isinstance(heard[-1], Died)


@pytest.mark.parametrize("host", HOSTS)
async def test_cancellation_takes_the_worker_along(host: type) -> None:
    """A cancelled `run` returns promptly, with the worker stopped and its thread at rest."""
    ear = Ear()
    worker: Worker = host(load_spec("prefill_s=1000"), ear)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            await ear.ready()
            worker.send(Submit(1, request()))
            await ear.until(lambda: len(ear.outputs(1)) == 1)
            nursery.cancel_scope.cancel()
    assert not [thread for thread in threading.enumerate() if thread.name == "modeld m"]
