# SPDX-License-Identifier: GPL-3.0-only
"""The watch over the devices: what it sees, what it tells the scheduler, and what it survives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from support.fake_devices import FakeDevices, gpu, machine
from support.inline_worker import InlineWorker
from support.scheduler_driver import limits, spec
from support.scheduler_harness import SchedulerHarness, read, running_scheduler

from modeld.domain.daemon_events import EventKind
from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB
from modeld.engine.protocol import LoadSpec
from modeld.errors import MemoryTaken, ModelFailed, Problem
from modeld.memory.devices import LOOKS, Device, DeviceKind
from modeld.runtime.memory.device_watch import (
    GPU_LOOK_S,
    LOOK_S,
    MOST_FAILURES,
    DeviceWatch,
    MachineDevices,
    gpus_of,
)
from modeld.worker.host import OnMessage

PROBLEM = ModelFailed("the driver fell over").as_problem()


@asynccontextmanager
async def watched_house(
    source: FakeDevices, budget_mb: int | None = 300
) -> AsyncIterator[tuple[SchedulerHarness, DeviceWatch]]:
    async with (
        running_scheduler([spec(name) for name in "abc"], limits(budget_mb)) as it,
        trio.open_nursery() as nursery,
    ):
        watch = DeviceWatch(source, it.scheduler)
        await nursery.start(watch.run)
        yield it, watch
        nursery.cancel_scope.cancel()


async def test_others_that_take_memory_shrink_the_budget_and_give_it_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A request is refused meanwhile; afterwards the same one is served."""
    source = FakeDevices(machine(1000))
    async with watched_house(source) as (it, watch):
        assert it.scheduler.fleet.budget == 300 * MIB
        source.set("CPU", 64)
        await trio.sleep(LOOK_S * 1.5)
        with pytest.raises(MemoryTaken, match="960 of the 1024 MiB of CPU"):
            it.ask("a")
        (status,) = watch.statuses()
        assert (status.free_mb, status.total_mb, status.effective_mb, status.foreign_mb) == (
            64,
            1024,
            64,
            960,
        )
        source.set("CPU", 1000)
        await trio.sleep(LOOK_S * LOOKS)
        assert (await read(it.ask("a")))[-1]
        assert it.scheduler.fleet.budget == 300 * MIB
    assert [action for action, _ in it.events if action == "budget"] == ["budget", "budget"]
    assert it.observer.events.status().recorded[EventKind.DECIDED] == 2


async def test_idle_models_go_when_memory_stays_taken(autojump_clock: trio.testing.MockClock) -> None:
    """Not at once, and not more of them than needed."""
    source = FakeDevices(machine(1000))
    async with watched_house(source) as (it, _):
        for name in "abc":
            await read(it.ask(name))
        source.set("CPU", 200)  # With what this process grew by, 200 to 256.
        await trio.sleep(LOOK_S * 2.5)
        assert it.scheduler.instances.keys() == {"a.gguf", "b.gguf", "c.gguf"}
        await trio.sleep(LOOK_S * LOOKS)
        assert it.scheduler.instances.keys() == {"b.gguf", "c.gguf"}
        assert it.scheduler.model_states()["a.gguf"] is InstanceState.STOPPED
    assert ("unload", "a.gguf") in it.events


@pytest.mark.parametrize("budget_mb", [None, 300])
async def test_a_machine_with_room_enough_never_bothers_the_scheduler(
    autojump_clock: trio.testing.MockClock, budget_mb: int | None
) -> None:
    """With a budget far below what is free, or with none, nothing is decided again."""
    source = FakeDevices(machine(800))
    async with watched_house(source, budget_mb) as (it, _):
        for free in (800, 900, 500, 700):
            source.set("CPU", free)
            await trio.sleep(LOOK_S)
        assert it.scheduler.fleet.devices == ()
    assert it.events == []


async def test_a_system_that_tells_nothing_changes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Without a total the budget is what is set."""
    async with watched_house(FakeDevices(machine(0, 0))) as (it, watch):
        assert it.scheduler.fleet.budget == 300 * MIB
        assert watch.statuses()[0].effective_mb is None


async def test_without_watching_the_devices_are_only_shown(autojump_clock: trio.testing.MockClock) -> None:
    """`vram_watch: false`: no look, and no budget but the one that is set."""
    source = FakeDevices(machine(10))
    async with running_scheduler([spec("a")], limits(300)) as it, trio.open_nursery() as nursery:
        watch = DeviceWatch(source, it.scheduler, watches=False)
        await nursery.start(watch.run)
        assert [(one.name, one.free_mb, one.effective_mb) for one in watch.statuses()] == [("CPU", 10, None)]
        assert it.scheduler.fleet.budget == 300 * MIB


def asker(answers: Iterator[tuple[Device, ...] | Problem]) -> Callable[[], object]:
    async def ask() -> tuple[Device, ...] | Problem:
        await trio.lowlevel.checkpoint()
        return next(answers)

    return ask


async def test_gpus_that_cannot_be_asked_any_more_take_no_more_models(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One look that fails is a warning; after some in a row what was seen before is not believed."""
    seen = (machine(800), gpu(0, 600))
    answers = iter([seen, *[PROBLEM] * MOST_FAILURES, seen, *[seen] * 10])
    source = MachineDevices(backends=("cuda",), ask=asker(answers), read=lambda: machine(700))
    async with trio.open_nursery() as nursery:
        await nursery.start(source.run)
        await trio.sleep(1)  # Between two looks, not at one.
        frees: list[int] = []
        problems: list[str] = []
        for _ in range(MOST_FAILURES + 2):
            frees.append(source.look()[1].free // MIB)
            problems.append(source.problem or "")
            assert source.look()[0].free == 700 * MIB, "the machine's memory is read here, and not asked for"
            await trio.sleep(GPU_LOOK_S)
        nursery.cancel_scope.cancel()
    assert frees == [600] * MOST_FAILURES + [0, 600]
    used, not_believed = "; what was seen before is used", "; no model is put on a GPU until it succeeds"
    expected = [used] * (MOST_FAILURES - 1) + [not_believed]
    assert problems == ["", *(PROBLEM.message + end for end in expected), ""]


async def test_gpus_that_were_never_seen_are_left_to_llama_cpp_and_that_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing was seen before, so nothing of it is used; it is asked again, and then they are known."""
    answers = iter([*[PROBLEM] * MOST_FAILURES, *[(machine(800), gpu(0, 600))] * 10])
    source = MachineDevices(backends=("cuda",), ask=asker(answers), read=lambda: machine(700))
    async with trio.open_nursery() as nursery:
        await nursery.start(source.run)
        await trio.sleep(1)  # Between two looks, not at one.
        for _ in range(MOST_FAILURES):
            assert "llama.cpp alone says where models go" in (source.problem or "")
            assert source.look() == (machine(700),)
            await trio.sleep(GPU_LOOK_S)
        assert source.problem is None
        assert len(source.look()) == 2
        nursery.cancel_scope.cancel()


async def test_a_library_without_other_backends_starts_no_process(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """On a machine of CPUs alone a look reads some files, and that is all."""
    source = MachineDevices(backends=(), ask=asker(iter([])), read=lambda: machine(700))
    with trio.fail_after(1000):
        await source.run()
    assert source.look() == (machine(700),)


async def test_a_library_with_a_backend_for_cards_that_are_not_there_is_asked_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Cards do not come while a daemon runs."""
    source = MachineDevices(backends=("cuda",), ask=asker(iter([(machine(800),)])), read=lambda: machine(700))
    with trio.fail_after(1000):
        await source.run()
    assert source.look() == (machine(700),)


def test_models_go_on_gpus_or_on_those_inside_the_cpu_and_on_nothing_else() -> None:
    """As llama.cpp chooses: cards; without any, what the first backend calls a GPU inside the CPU."""

    def inside(name: str) -> Device:
        return Device(name=name, kind=DeviceKind.IGPU)

    blas = Device(name="BLAS", kind=DeviceKind.ACCELERATOR)
    assert gpus_of((machine(1), blas, inside("Vulkan0"), gpu(0, 1))) == (gpu(0, 1),)
    assert [it.name for it in gpus_of((inside("CUDA0"), inside("CUDA1"), inside("Vulkan0")))] == [
        "CUDA0",
        "CUDA1",
    ]
    assert gpus_of((machine(1), blas)) == ()


async def test_models_are_placed_on_the_gpus_that_are_seen(autojump_clock: trio.testing.MockClock) -> None:
    """The worker is told its GPU; what the ledger has there is ours, and the rest is foreign."""
    source = FakeDevices(machine(1000), gpu(0, 300), gpu(1, 500))
    loads: list[LoadSpec] = []

    def host(load: LoadSpec, on_message: OnMessage) -> InlineWorker:
        loads.append(load)
        return InlineWorker(load, on_message)

    models = [spec(name, 256) for name in "ab"]
    async with running_scheduler(models, limits(2000), host=host) as it, trio.open_nursery() as nursery:
        watch = DeviceWatch(source, it.scheduler)
        await nursery.start(watch.run)
        await read(it.ask("a"))
        await read(it.ask("b"))
        placed = [(load.model_id, load.options.main_gpu, load.options.gpu_layers) for load in loads]
        assert placed == [("a.gguf", 1, 1), ("b.gguf", 0, 1)]
        source.set("CUDA0", 40)
        source.set("CUDA1", 100)
        await trio.sleep(LOOK_S * 60)
        told = {one.name: (one.ours_mb, one.foreign_mb, one.effective_mb) for one in watch.statuses()[1:]}
        assert told == {"CUDA0": (256, 1024 - 296, 256), "CUDA1": (256, 1024 - 356, 320)}
        assert it.scheduler.fleet.instance("a.gguf").reserved == 256 * MIB
        nursery.cancel_scope.cancel()


async def test_a_model_that_finds_no_gpu_is_told_to_use_none(autojump_clock: trio.testing.MockClock) -> None:
    """Else llama.cpp would make buffers on one for layers that are all with the CPU."""
    source = FakeDevices(machine(1000), gpu(0, 100))
    loads: list[LoadSpec] = []

    def host(load: LoadSpec, on_message: OnMessage) -> InlineWorker:
        loads.append(load)
        return InlineWorker(load, on_message)

    async with (
        running_scheduler([spec("a", 256)], limits(2000), host=host) as it,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(DeviceWatch(source, it.scheduler).run)
        await read(it.ask("a"))
        assert (loads[0].options.gpu_layers, loads[0].options.main_gpu) == (0, -1)
        nursery.cancel_scope.cancel()
