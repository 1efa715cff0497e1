# SPDX-License-Identifier: GPL-3.0-only
"""The best estimate for every model of a catalogue: dry runs in the background, and what loads teach."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from modeld.domain.model import (
    MIB,
    Catalog,
    DryRun,
    Footprint,
    FootprintSource,
    Isolation,
    LoadOptions,
    ModelFacts,
    ModelSpec,
    catalog_of,
)
from modeld.engine.protocol import LoadSpec
from modeld.errors import ModelFailed, Problem
from modeld.memory.calibration import Calibration
from modeld.runtime.memory.footprints import (
    FILE,
    MOST_ENTRIES,
    RETRY_S,
    SAVE_S,
    SETTLE_S,
    Entry,
    FootprintEstimator,
    FootprintStore,
)

FORMULA = Footprint(weights=300 * MIB)
RUN = DryRun(
    peak=Footprint(weights=100 * MIB, kv=50 * MIB, compute=40 * MIB, overhead=10 * MIB),
    before_use=Footprint(weights=100 * MIB, kv=50 * MIB, compute=10 * MIB, overhead=10 * MIB),
)


def model(name: str = "a.gguf", **more: object) -> ModelSpec:
    options = LoadOptions(isolation=Isolation.PROCESS)
    known = {"size_bytes": 1000, "modified_ns": 7, "options": options, "footprint": FORMULA, **more}
    return ModelSpec(id=name, path=f"/models/{name}", facts=ModelFacts(architecture="llama"), **known)


async def at_once(work: Callable[[], None]) -> None:
    """The disk, without a thread: a mock clock would jump while one works."""
    await trio.lowlevel.checkpoint()
    work()


class Bench:
    """Scales with a prober that answers from a table, and what they published."""

    def __init__(self, folder: Path | None, *, dry_runs: bool) -> None:
        self.published: list[Catalog] = []
        self.asked: list[str] = []
        self.answers: dict[str, DryRun | Problem] = {}
        self.busy = trio.Event()
        self.busy.set()
        self.scales = FootprintEstimator(
            FootprintStore(folder),
            publish=self.published.append,
            idle=self.idle,
            prober=self.probe,
            disk=at_once,
            dry_runs=dry_runs,
        )

    async def idle(self) -> None:
        await self.busy.wait()

    async def probe(self, load: LoadSpec) -> DryRun | Problem:
        await trio.lowlevel.checkpoint()
        self.asked.append(load.model_id)
        return self.answers.get(load.model_id, RUN)

    def now(self, name: str = "a.gguf") -> ModelSpec:
        return self.published[-1].models[name]


@asynccontextmanager
async def bench(folder: Path | None = None, *, dry_runs: bool = True) -> AsyncIterator[Bench]:
    made = Bench(folder, dry_runs=dry_runs)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.scales.run)
        yield made
        nursery.cancel_scope.cancel()


async def settle() -> None:
    """Let the scales do all they will."""
    await trio.sleep(SETTLE_S + 1)


async def test_a_new_model_has_the_formula_first_and_the_dry_run_soon(autojump_clock: MockClock) -> None:
    """Nobody waits for the second; it comes as another catalogue."""
    async with bench() as it:
        it.scales.take(catalog_of([model()]))
        assert (it.now().scale.source, it.now().footprint) == (FootprintSource.FORMULA, FORMULA)
        await settle()
        assert (it.now().scale.source, it.now().footprint) == (FootprintSource.PROBE, RUN.peak)
        it.scales.take(catalog_of([model()]))
        await settle()
        assert it.asked == ["a.gguf"]


async def test_other_options_or_another_file_are_asked_for_anew(autojump_clock: MockClock) -> None:
    """Size, time of modification and every option that is not the number of threads."""
    changed = [
        model(size_bytes=1001),
        model(modified_ns=8),
        model(options=LoadOptions(isolation=Isolation.PROCESS, ubatch=64)),
    ]
    async with bench() as it:
        for spec in [model(), *changed]:
            it.scales.take(catalog_of([spec]))
            await settle()
        assert len(it.asked) == 4
        threads = replace(model().options, threads=7)
        it.scales.take(catalog_of([model(options=threads)]))
        await settle()
        assert len(it.asked) == 4


async def test_nothing_is_asked_for_while_a_request_is_inside(autojump_clock: MockClock) -> None:
    """A dry run takes the CPU that a stream wants."""
    async with bench() as it:
        it.busy = trio.Event()
        it.scales.take(catalog_of([model()]))
        await settle()
        assert it.asked == []
        it.busy.set()
        await settle()
        assert it.asked == ["a.gguf"]


async def test_what_cannot_be_loaded_or_has_no_process_is_not_asked_for(autojump_clock: MockClock) -> None:
    """A damaged file, and a model for a thread of the daemon."""
    async with bench() as it:
        broken = replace(model("b.gguf"), facts=None, error="cut off")
        thread = model("c.gguf", options=LoadOptions(isolation=Isolation.THREAD))
        it.scales.take(catalog_of([broken, thread]))
        await settle()
        assert it.asked == []
        assert it.now("b.gguf") == broken
        assert it.now("c.gguf").footprint == FORMULA


async def test_without_dry_runs_only_loads_teach(autojump_clock: MockClock) -> None:
    """The operator may want no second process; what a load shows is compared with the formula."""
    async with bench(dry_runs=False) as it:
        it.scales.take(catalog_of([model()]))
        await settle()
        assert it.asked == []
        it.scales.ready(it.now(), 330 * MIB)
        assert it.now().scale.ratio == pytest.approx(1.1)


async def test_a_dry_run_that_fails_leaves_the_formula_and_says_why(autojump_clock: MockClock) -> None:
    """It is not tried again while the file is the same."""
    async with bench() as it:
        it.answers["a.gguf"] = ModelFailed("it was killed by SIGABRT").as_problem()
        it.scales.take(catalog_of([model()]))
        await settle()
        it.scales.take(catalog_of([model()]))
        await settle()
        assert it.asked == ["a.gguf"]
        assert (it.now().footprint, it.now().scale.problem) == (FORMULA, "it was killed by SIGABRT")


async def test_a_dry_run_without_an_answer_in_time_is_tried_again_later(autojump_clock: MockClock) -> None:
    """The machine was busy; that says nothing of the file."""
    async with bench() as it:
        late = ModelFailed("it did not end within 5 s", details={"within_s": 5.0})
        it.answers["a.gguf"] = late.as_problem()
        it.scales.take(catalog_of([model()]))
        await settle()
        assert it.now().scale.problem == late.message
        del it.answers["a.gguf"]
        await trio.sleep(RETRY_S)
        await settle()
        assert (it.asked, it.now().scale.source) == (["a.gguf"] * 2, FootprintSource.PROBE)
        assert it.now().scale.problem == ""


async def test_a_load_teaches_and_the_next_life_of_the_daemon_knows_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Neither the dry run nor the load is repeated for what a file in state_dir tells."""
    async with bench(tmp_path) as it:
        it.scales.take(catalog_of([model()]))
        await settle()
        it.scales.ready(it.now(), 177 * MIB)
        assert it.now().scale.ratio == pytest.approx(1.1)
        await trio.sleep(SAVE_S + 1)
        assert (tmp_path / FILE).exists()
    async with bench(tmp_path) as again:
        again.scales.take(catalog_of([model()]))
        assert again.now().footprint.total == pytest.approx(220 * MIB, abs=4)
        assert again.now().scale.measured == 187 * MIB
        await settle()
        assert again.asked == []


async def test_memory_that_ran_out_is_remembered(autojump_clock: MockClock) -> None:
    """The estimate is a quarter higher from then on."""
    async with bench() as it:
        it.scales.take(catalog_of([model()]))
        await settle()
        it.scales.out_of_memory(it.now())
        it.scales.ready(it.now(), 160 * MIB)
        assert it.now().scale.ratio == 1.25


async def test_a_load_by_formula_teaches_nothing_of_the_dry_run(autojump_clock: MockClock) -> None:
    """A model that was loaded before its dry run ended was compared with another estimate."""
    async with bench() as it:
        it.scales.take(catalog_of([model()]))
        early = it.now()
        await settle()
        it.scales.ready(early, 600 * MIB)
        assert it.now().scale.ratio == 1.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 99, "entries": {}}',
        b'{"format": 1, "entries": {"k": {"model": 7}}}',
        b"\xff",
        b'{"other": ' + b"[" * 100_000,
    ],
    ids=["empty", "cut", "a list", "another format", "wrong types", "no text", "deep"],
)
def test_a_corrupt_book_is_ignored_with_a_warning(tmp_path: Path, content: bytes) -> None:
    """The daemon starts as if there were none, and writes a sound one."""
    (tmp_path / FILE).write_bytes(content)
    book = FootprintStore(tmp_path)
    with structlog.testing.capture_logs() as lines:
        book.load()
    assert [line["log_level"] for line in lines] == ["warning"]
    book.put("k", Entry(model="a.gguf", learned=Calibration(ready=1.1)))
    book.save(book.frozen())
    assert json.loads((tmp_path / FILE).read_text())["entries"]["k"]["model"] == "a.gguf"


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    """A file stands where the folder should be: nothing is kept, nothing stops."""
    (tmp_path / "state").write_text("in the way")
    book = FootprintStore(tmp_path / "state")
    with structlog.testing.capture_logs() as lines:
        book.save(book.frozen())
        book.save(book.frozen())
    assert [line["log_level"] for line in lines] == ["warning"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_book_has_a_bounded_number_of_entries() -> None:
    """The oldest are forgotten; one that was changed again is young."""
    book = FootprintStore(None)
    for number in range(MOST_ENTRIES + 5):
        book.put(str(number), Entry(model="m"))
        book.put("0", Entry(model="m"))
    assert book.find("0") is not None
    assert book.find("1") is None
    assert book.find(str(MOST_ENTRIES + 4)) is not None
