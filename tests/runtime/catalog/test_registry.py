# SPDX-License-Identifier: GPL-3.0-only
"""The registry: one look at a time, shared by all who ask, and no wait without an end."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing
from support import tiny_gguf

from modeld.config.settings import Settings
from modeld.domain.model import Catalog, ModelSpec, catalog_of
from modeld.runtime.catalog import registry as module
from modeld.runtime.catalog.registry import ModelRegistry
from modeld.runtime.catalog.scan import ScanResult


class HeldScan:
    """A disk that answers when it is told to: stands for a mount that hangs."""

    def __init__(self) -> None:
        self.calls = 0
        self.running = 0
        self.most_running = 0
        self.answers = threading.Semaphore(0)
        self.models: tuple[str, ...] = ()

    def __call__(self) -> ScanResult:
        self.calls += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.answers.acquire()
        self.running -= 1
        return ScanResult(catalog=catalog_of(ModelSpec(id=name, path=name) for name in self.models))

    def answer(self, times: int = 1) -> None:
        self.answers.release(times)


@contextmanager
def held() -> Iterator[HeldScan]:
    scan = HeldScan()
    try:
        yield scan
    finally:
        scan.answer(1000)


@asynccontextmanager
async def looking(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery, models: tuple[str, ...] = ()
) -> AsyncIterator[tuple[HeldScan, ModelRegistry]]:
    """A registry that has looked once, and found `models`; the next look waits for its answer."""
    with held() as scan:
        scan.models = models
        scan.answer()
        registry = registry_of(scan)
        await nursery.start(registry.run)
        mock_clock.jump(1)
        yield scan, registry
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Let threads come this far, in real time whatever the clock of the loop."""
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up, "this never came about"
        await trio.lowlevel.checkpoint()


def registry_of(scan: Callable[[], ScanResult], changes: list[Catalog] | None = None) -> ModelRegistry:
    on_change = None if changes is None else changes.append
    return ModelRegistry(Settings(models_dir=Path("/models")), scan=scan, on_change=on_change)


async def test_it_has_started_when_the_first_look_is_done(tmp_path: Path, nursery: trio.Nursery) -> None:
    """After `start` the catalogue is there, and the change was told once."""
    tiny_gguf.write_model(tmp_path / "a.gguf")
    changes: list[Catalog] = []
    registry = ModelRegistry(Settings(models_dir=tmp_path), on_change=changes.append)
    assert not registry.catalog.models
    await nursery.start(registry.run)
    assert list(registry.catalog.models) == ["a.gguf"]
    assert changes == [registry.catalog]
    await registry.refresh()
    assert len(changes) == 1


async def test_new_changed_and_removed_files_are_noticed(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Each look that finds something else tells of it, in the event loop's own thread."""
    seen: list[tuple[list[str], int]] = []
    registry = ModelRegistry(
        Settings(models_dir=tmp_path),
        on_change=lambda catalog: seen.append((list(catalog.models), threading.get_ident())),
    )
    await nursery.start(registry.run)
    assert seen == []
    tiny_gguf.write_model(tmp_path / "a.gguf")
    assert list((await registry.refresh()).models) == ["a.gguf"]
    (tmp_path / "a.gguf").write_bytes(b"")
    assert (await registry.refresh()).models["a.gguf"].error == "a.gguf is empty"
    (tmp_path / "a.gguf").unlink()
    assert not (await registry.refresh()).models
    here = threading.get_ident()
    assert seen == [(["a.gguf"], here), (["a.gguf"], here), ([], here)]


async def test_a_growing_file_is_read_again_until_it_is_whole(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A download in progress is listed with its error and heals by itself."""
    content = tiny_gguf.write_model(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "whole.gguf").unlink()
    registry = ModelRegistry(Settings(models_dir=tmp_path))
    await nursery.start(registry.run)
    with (tmp_path / "a.gguf").open("wb", buffering=0) as file:
        for begin in range(0, len(content), len(content) // 4 + 1):
            error = (await registry.refresh()).models["a.gguf"].error
            assert error is not None
            file.write(content[begin : begin + len(content) // 4 + 1])
    assert (await registry.refresh()).models["a.gguf"].error is None


async def test_a_folder_that_appears_later_is_taken_up(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Missing: an error and no models. There: no error. Gone again: no models."""
    folder = tmp_path / "models"
    registry = ModelRegistry(Settings(models_dir=folder))
    await nursery.start(registry.run)
    assert registry.error is not None
    folder.mkdir()
    tiny_gguf.write_model(folder / "a.gguf")
    await registry.refresh()
    assert registry.error is None
    assert list(registry.catalog.models) == ["a.gguf"]
    shutil.rmtree(folder)
    assert not (await registry.refresh()).models
    assert registry.error is not None


async def test_it_looks_again_by_itself(mock_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    """Every two seconds, without being asked, and not before."""
    with held() as scan:
        changes: list[Catalog] = []
        scan.answer()
        await nursery.start(registry_of(scan, changes).run)
        for looks in (1, 2, 3):
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(module.INTERVAL_S * 0.9)
            await trio.testing.wait_all_tasks_blocked()
            assert scan.calls == looks
            scan.models = (f"{looks}.gguf",)
            scan.answer()
            mock_clock.jump(module.INTERVAL_S * 0.2)
            await until(lambda looks=looks: len(changes) == looks)
        nursery.cancel_scope.cancel()


async def test_all_who_ask_at_once_share_one_look(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Ten callers, one look; never two at the same time."""
    assert mock_clock.rate == 0
    async with looking(mock_clock, nursery) as (scan, registry):
        async with trio.open_nursery() as callers:
            for _ in range(10):
                callers.start_soon(registry.refresh)
            await trio.testing.wait_all_tasks_blocked()
            scan.models = ("a.gguf",)
            scan.answer()
        assert (scan.calls, scan.most_running) == (2, 1)
        assert list(registry.catalog.models) == ["a.gguf"]


async def test_who_asks_during_a_look_gets_one_that_began_later(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A look under way may have passed the new file already, so it does not count, unless age is allowed."""
    async with looking(mock_clock, nursery) as (scan, registry):
        async with trio.open_nursery() as callers:
            callers.start_soon(registry.refresh)
            await until(lambda: scan.calls == 2)
            mock_clock.jump(0.5)
            callers.start_soon(registry.refresh)
            callers.start_soon(registry.refresh, 0.6)
            await trio.testing.wait_all_tasks_blocked()
            scan.answer()
            await until(lambda: scan.calls == 3)
            scan.answer()
        assert scan.calls == 3


async def test_a_look_that_is_young_enough_is_not_repeated(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """`max_age_s` saves the disk."""
    async with looking(mock_clock, nursery) as (scan, registry):
        await registry.refresh(1.5)
        assert scan.calls == 1


async def test_a_caller_that_leaves_takes_no_look_with_it(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """The look goes on for the others."""
    async with looking(mock_clock, nursery) as (scan, registry):
        async with trio.open_nursery() as others:
            async with trio.open_nursery() as leaver:
                leaver.start_soon(registry.refresh)
                await until(lambda: scan.calls == 2)
                others.start_soon(registry.refresh)
                await trio.testing.wait_all_tasks_blocked()
                leaver.cancel_scope.cancel()
            scan.answer()
        assert scan.calls == 2


async def test_nobody_waits_for_a_dead_disk_without_end(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """After five seconds all get what was known, and the error; no second thread is sent after the first."""
    async with looking(mock_clock, nursery, ("a.gguf",)) as (scan, registry):
        with structlog.testing.capture_logs():
            async with trio.open_nursery() as callers:
                callers.start_soon(registry.refresh)
                await until(lambda: scan.calls == 2)
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(module.PATIENCE_S)
        assert list(registry.catalog.models) == ["a.gguf"]
        assert registry.error is not None
        assert "has not answered for 5 s" in registry.error
        for _ in range(3):
            mock_clock.jump(60)
            await registry.refresh()
        assert (scan.calls, scan.most_running) == (2, 1)
        scan.models = ("b.gguf",)
        scan.answer()
        await until(lambda: registry.error is None)
        assert list(registry.catalog.models) == ["b.gguf"]


async def test_a_dead_disk_at_the_start_does_not_hold_the_start_up(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """The daemon comes up without models and with the error."""
    with held() as scan:
        registry = registry_of(scan)
        with structlog.testing.capture_logs():
            async with trio.open_nursery() as starter:
                starter.start_soon(nursery.start, registry.run)
                await until(lambda: scan.calls == 1)
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(module.PATIENCE_S)
        assert registry.error is not None
        assert not registry.catalog.models
        scan.answer()
        nursery.cancel_scope.cancel()


async def test_a_stop_waits_a_moment_for_a_look(nursery: trio.Nursery) -> None:
    """A look that comes back in time leaves no thread behind, and no line in the log."""
    with held() as scan, structlog.testing.capture_logs() as lines:
        scan.answer()
        registry = registry_of(scan)
        async with trio.open_nursery() as inner:
            await inner.start(registry.run)
            inner.start_soon(registry.refresh)
            await until(lambda: scan.running == 1)
            inner.cancel_scope.cancel()
            nursery.start_soon(trio.to_thread.run_sync, scan.answer)
        assert scan.running == 0
        assert registry._limiter.borrowed_tokens == 0
        assert lines == []


async def test_a_stop_does_not_wait_for_a_dead_disk(autojump_clock: trio.testing.MockClock) -> None:
    """The thread is left behind after a second, and the log says so."""
    with held() as scan, structlog.testing.capture_logs() as lines:
        registry = registry_of(scan)
        with trio.move_on_after(30):
            await registry.run()
        assert autojump_clock.current_time() - 30 < module.GRACE_S + 1
        assert [line["event"] for line in lines] == [
            "the models folder does not answer",
            "a thread that looks at the models folder does not come back and is left behind",
        ]


async def test_a_defect_of_a_look_keeps_the_models_that_are_known(nursery: trio.Nursery) -> None:
    """The daemon goes on with what it knew, and says what broke."""
    outcomes: list[ScanResult | Exception] = [
        ScanResult(catalog=catalog_of([ModelSpec(id="a.gguf", path="a.gguf")])),
        RuntimeError("oops"),
        ScanResult(),
    ]

    def scan() -> ScanResult:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    registry = registry_of(scan)
    with structlog.testing.capture_logs():
        await nursery.start(registry.run)
        await registry.refresh()
    assert list(registry.catalog.models) == ["a.gguf"]
    assert registry.error == "the look at the models folder broke: RuntimeError('oops')"
    assert not (await registry.refresh()).models
    assert registry.error is None


async def test_trouble_is_logged_once_when_it_appears(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Looks every two seconds do not fill the log."""
    (tmp_path / "bad.gguf").touch()
    registry = ModelRegistry(Settings(models_dir=tmp_path, models={"typo": module.ModelSettings()}))
    with structlog.testing.capture_logs() as lines:
        await nursery.start(registry.run)
        for _ in range(3):
            await registry.refresh()
    assert [line["event"] for line in lines] == [
        "entries of the setting `models` name no model",
        "a model cannot be served",
    ]


@pytest.mark.parametrize("name", ["a.gguf", "unknown.gguf"])
async def test_the_settings_of_a_model_are_asked_by_id(
    tmp_path: Path, nursery: trio.Nursery, name: str
) -> None:
    """The entry that applies, or one that says nothing."""
    tiny_gguf.write_model(tmp_path / "a.gguf")
    registry = ModelRegistry(
        Settings(models_dir=tmp_path, models={"a": module.ModelSettings(max_queue_depth=7)})
    )
    await nursery.start(registry.run)
    assert registry.settings_of(name).max_queue_depth == (7 if name == "a.gguf" else None)
    assert registry.ignored == {}
    assert registry.unmatched == ()
