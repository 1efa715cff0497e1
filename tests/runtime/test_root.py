# SPDX-License-Identifier: GPL-3.0-only
"""The root of the tree: what starts before what, and what a stop does in which order."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from support.fake_devices import FakeDevices, gpu, machine
from support.inline_worker import InlineWorker
from support.scheduler_harness import read, text_of
from support.tiny_gguf import write_model

from modeld.config.model_settings import ModelSettings
from modeld.config.settings import AUTO, Settings
from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, EngineKind
from modeld.domain.request import GenerateRequest, Order
from modeld.domain.request_events import Failed, Finished, FinishReason
from modeld.domain.status import DaemonStatus
from modeld.errors import Draining
from modeld.runtime.daemon import Daemon
from modeld.runtime.memory.machine import budget_bytes, memory_of_machine
from modeld.runtime.root import Root, limits_of
from modeld.runtime.systemd import Notifier, SystemdContext
from modeld.runtime.ticket import Ticket
from modeld.telemetry.metrics import Metrics
from modeld.worker.thread_host import ThreadWorker


def root_of(
    folder: Path, *, host: object = InlineWorker, devices: FakeDevices | None = None, **more: object
) -> Root:
    """A root over the fake engine, with one model file."""
    (folder / "a.gguf").write_bytes(b"anything")
    settings = Settings(models_dir=folder, engine=EngineKind.FAKE, **more)
    supervision = SystemdContext(notifier=Notifier(None), watchdog_s=None, binds=())
    return Root(
        settings,
        host=host,
        metrics=Metrics(),
        supervision=supervision,
        node_id="test",
        devices=devices,
    )


class Front:
    """A front that plays one client: asks, reads, and notes when it was told to stop."""

    def __init__(self, max_tokens: int, writing_s: float = 0.0) -> None:
        """`writing_s`: what the last line takes on its way to the client."""
        self.events: list[object] = []
        self.told: list[str] = []
        self.max_tokens = max_tokens
        self.writing_s = writing_s
        self.daemon: Daemon | None = None

    def ask(self, daemon: Daemon) -> Ticket:
        request = GenerateRequest(prompt="one two three", max_tokens=self.max_tokens)
        return daemon.submit(Order(request=request, model="a"), request_id="test")

    async def __call__(
        self, daemon: Daemon, *, shutdown: trio.Event, task_status: trio.TaskStatus[list[str]]
    ) -> None:
        self.daemon = daemon
        assert daemon.catalog.find("a") is not None, "the registry has looked before the front starts"
        task_status.started(["http://here"])
        ticket = self.ask(daemon)
        async with trio.open_nursery() as nursery:

            async def client() -> None:
                self.events += await read(ticket)
                await trio.sleep(self.writing_s)
                self.told.append("answered")

            nursery.start_soon(client)
            while ticket.first_token is None:
                await trio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            await shutdown.wait()
            self.told.append("shutdown")
            with pytest.raises(Draining):
                self.ask(daemon)


class Visitor:
    """A front that does one thing with the daemon, and then has it stopped."""

    def __init__(self, visit: Callable[[Daemon], Awaitable[None]]) -> None:
        self.visit = visit

    async def __call__(
        self, daemon: Daemon, *, shutdown: trio.Event, task_status: trio.TaskStatus[list[str]]
    ) -> None:
        task_status.started([])
        await self.visit(daemon)
        os.kill(os.getpid(), signal.SIGTERM)
        await shutdown.wait()


@pytest.mark.parametrize(
    ("max_tokens", "drain_s", "reason"),
    [(20, 60.0, FinishReason.LENGTH), (10**6, 0.2, FinishReason.SHUTDOWN)],
)
@pytest.mark.parametrize("host", [InlineWorker, ThreadWorker])
@pytest.mark.slow
async def test_a_stop_drains_then_cuts_then_closes_the_front_then_the_fleet(
    tmp_path: Path, max_tokens: int, drain_s: float, reason: FinishReason, host: object
) -> None:
    """A short answer is finished, a long one is cut with its last event, and nothing is left."""
    root = root_of(tmp_path, host=host, fake="step_s=0.01", drain_timeout=drain_s, shutdown_timeout=60.0)
    front = Front(max_tokens)
    announced: list[str] = []
    with trio.fail_after(120):
        await root.run(front, announced.extend)
    assert announced == ["http://here"]
    last = front.events[-1]
    assert isinstance(last, Finished)
    assert last.reason is reason
    assert text_of(front.events)
    assert sorted(front.told) == ["answered", "shutdown"]
    assert front.daemon is not None
    assert front.daemon.health() == "the scheduler does not run"


async def test_a_drain_that_is_longer_than_the_stop_leaves_time_for_last_lines(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """With more `drain_timeout` than `shutdown_timeout` streams still get their last event."""
    root = root_of(tmp_path, fake="step_s=0.1", drain_timeout=60.0, shutdown_timeout=5.0)
    front = Front(10**6, writing_s=0.2)

    async def pass_time() -> None:
        while front.daemon is None:
            await trio.testing.wait_all_tasks_blocked()
        while "answered" not in front.told and trio.current_time() < 1000:
            mock_clock.jump(0.1)
            await trio.testing.wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_time)
        await root.run(front, lambda _urls: None)
    assert isinstance(front.events[-1], Finished)
    assert front.events[-1].reason is FinishReason.SHUTDOWN
    assert "answered" in front.told


async def test_a_front_that_never_ends_is_cut_at_the_deadline(tmp_path: Path) -> None:
    """Whatever holds the front, the stop is over within shutdown_timeout."""
    root = root_of(tmp_path, drain_timeout=0.1, shutdown_timeout=1.0)

    class Stubborn:
        async def __call__(
            self, _daemon: Daemon, *, shutdown: trio.Event, task_status: trio.TaskStatus[list[str]]
        ) -> None:
            task_status.started([])
            os.kill(os.getpid(), signal.SIGTERM)
            await shutdown.wait()
            await trio.sleep_forever()

    with trio.move_on_after(60) as patience:
        await root.run(Stubborn(), lambda _urls: None)
    assert not patience.cancelled_caught, "nothing but shutdown_timeout ends this front"


async def test_sizes_are_chosen_by_the_devices_that_are_there(tmp_path: Path) -> None:
    """They are known before the folder is looked at for the first time."""
    told: list[str] = []

    async def visit(daemon: Daemon) -> None:
        await trio.lowlevel.checkpoint()
        told.append(daemon.catalog.models["a.gguf"].sizing)

    for devices in (FakeDevices(machine(9000, 9000)), FakeDevices(machine(9000, 9000), gpu(0, 0, 150))):
        root = root_of(tmp_path, devices=devices, vram_budget_mb=4000, llama_ctx=AUTO)
        write_model(tmp_path / "a.gguf", extra={"llama.context_length": 65536})
        await root.run(Visitor(visit), lambda _urls: None)
    assert ["GPU" in sizing for sizing in told] == [False, True]


async def test_what_is_to_be_preloaded_is_loaded_without_a_request(tmp_path: Path) -> None:
    """`preload` in the config loads the model once the folder was read."""
    root = root_of(tmp_path, models={"a": ModelSettings(preload=True, fake="load_s=0.05")})

    async def visit(daemon: Daemon) -> None:
        with trio.fail_after(60):
            assert daemon.readiness() == "loading"
            while daemon.readiness() != "ready":
                await trio.sleep(0.01)
        assert daemon.model_states() == {"a.gguf": InstanceState.READY}
        status = daemon.status()
        assert status.loads_total == 1
        assert status.instances[0].model_id == "a.gguf"
        assert status.devices[0].total_mb > 0

    await root.run(Visitor(visit), lambda _urls: None)


async def test_the_devices_are_known_before_the_first_request(tmp_path: Path) -> None:
    """What others hold counts from the start, unless that is switched off."""
    statuses: list[DaemonStatus] = []

    async def visit(daemon: Daemon) -> None:
        await trio.lowlevel.checkpoint()
        statuses.append(daemon.status())

    told: list[tuple[float | None, bool, float | None]] = []
    for watches in (True, False):
        source = FakeDevices(machine(256, 1000))
        root = root_of(tmp_path, devices=source, vram_budget_mb=500, vram_watch=watches)
        await root.run(Visitor(visit), lambda _urls: None)
        status = statuses[-1]
        told.append((status.effective_budget_mb, bool(status.shortage), status.devices[0].effective_mb))
    assert told == [(256.0, True, 256.0), (500.0, False, None)]


async def test_a_budget_of_auto_counts_what_the_cards_have_free(tmp_path: Path) -> None:
    """A machine's memory and that of its GPUs, less a tenth; once, at the start."""
    told: list[float] = []

    async def visit(daemon: Daemon) -> None:
        await trio.lowlevel.checkpoint()
        told.append(daemon.status().budget_mb)

    huge = 2**30  # MiB: a machine of this size is not about to run these tests
    for cards in ((), (gpu(0, huge, huge), gpu(1, huge, huge))):
        root = root_of(tmp_path, devices=FakeDevices(machine(1000), *cards), vram_budget_mb=None)
        await root.run(Visitor(visit), lambda _urls: None)
    assert 0 < told[0] < 0.9 * huge
    assert 1.8 * huge <= told[1] < 2.7 * huge


async def test_a_front_that_cannot_start_ends_the_tree_with_its_error(tmp_path: Path) -> None:
    """An address in use comes out of `run`, with everything stopped."""
    root = root_of(tmp_path)

    class Broken:
        async def __call__(
            self, _daemon: Daemon, *, shutdown: trio.Event, task_status: trio.TaskStatus[list[str]]
        ) -> None:
            del shutdown, task_status
            await trio.lowlevel.checkpoint()
            raise OSError("address in use")

    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="address in use"), flatten_subgroups=True):
        await root.run(Broken(), lambda _urls: None)


async def test_a_failed_request_before_any_token_is_told(tmp_path: Path) -> None:
    """The daemon goes on after a load that failed, and tells why in its status."""
    root = root_of(tmp_path, fake="fail_load=bad_luck")

    async def visit(daemon: Daemon) -> None:
        ticket = Front(5).ask(daemon)
        failed = (await read(ticket))[-1]
        assert isinstance(failed, Failed)
        assert "bad luck" in failed.problem.message
        status = daemon.status()
        assert status.last_error is not None
        assert "bad luck" in status.last_error
        assert status.instances[0].last_error == "bad luck"

    await root.run(Visitor(visit), lambda _urls: None)


def test_the_budget_of_auto_is_what_the_machine_can_spare() -> None:
    """0 is unlimited, a number is MiB, auto is nine tenths of what is available."""
    memory = memory_of_machine()
    assert 0 < memory.available <= memory.total
    assert budget_bytes(0) is None
    assert budget_bytes(100) == 100 * MIB
    auto = budget_bytes(None)
    assert auto is not None
    assert 0.5 * memory.available < auto < memory.total


def test_memory_is_told_as_unknown_where_the_system_does_not_tell(tmp_path: Path) -> None:
    """Without /proc/meminfo nothing is available, and nothing fails."""
    assert memory_of_machine(tmp_path / "nothing").available == 0


def test_limits_come_from_the_settings() -> None:
    """Durations, sizes and depths arrive unchanged."""
    limits = limits_of(Settings(vram_budget_mb=10, vram_margin_mb=2, max_queue_depth=7, max_wait=3.0))
    assert (limits.budget, limits.margin) == (10 * MIB, 2 * MIB)
    assert (limits.max_queue_depth, limits.max_wait_s) == (7, 3.0)


async def test_a_hangup_ends_nothing(tmp_path: Path) -> None:
    """SIGHUP in the middle of a stream: the stream goes on to its end."""
    root = root_of(tmp_path, fake="step_s=0.01")

    async def visit(daemon: Daemon) -> None:
        ticket = Front(30).ask(daemon)
        await ticket.next()
        os.kill(os.getpid(), signal.SIGHUP)
        last = (await read(ticket))[-1]
        assert isinstance(last, Finished)
        assert last.reason is FinishReason.LENGTH

    await root.run(Visitor(visit), lambda _urls: None)
