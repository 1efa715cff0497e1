# SPDX-License-Identifier: GPL-3.0-only
"""Which preloads keep the daemon from being ready, and what ends that."""

from __future__ import annotations

import pytest
from support.fleets import Paper, limits, spec

from modeld.domain.model import MIB
from modeld.errors import EngineFailed, FileChanged, ModelFailed, OutOfMemory
from modeld.memory.devices import DeviceKind, DeviceRoom
from modeld.runtime.scheduling.scheduler import preloads_under_way
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.inputs import DevicesChanged, Died, LoadFailed, Tick, UnloadAsked, Wanted

BROKEN = ModelFailed("the file ends too early").as_problem()
DEAD = EngineFailed("the engine broke").as_problem()


def under_way(paper: Paper) -> set[str]:
    return set(preloads_under_way(paper.fleet, ["a.gguf", "b.gguf"]))


def preloading(*names: str, budget_mb: int | None = None) -> Paper:
    paper = Paper([spec("a", 60, preload=True), spec("b", 60, preload=True)], limits(budget_mb))
    for name in names:
        paper.feed(Wanted(f"{name}.gguf"))
    return paper


def test_a_preload_is_under_way_until_it_is_loaded() -> None:
    """Several are waited for together, and a model that is not preloaded is not."""
    paper = preloading("a", "b")
    assert under_way(paper) == {"a.gguf", "b.gguf"}
    paper.loaded("a")
    assert under_way(paper) == {"b.gguf"}
    paper.loaded("b")
    assert under_way(paper) == set()
    assert under_way(preloading()) == set()


def test_a_load_that_failed_ends_the_wait_also_while_it_is_tried_again() -> None:
    """A file that llama.cpp refuses, or that crashes it each time, does not keep the daemon unready."""
    for failure in (LoadFailed("a.gguf", BROKEN), Died("a.gguf", DEAD)):
        paper = preloading("a")
        paper.feed(failure)
        while isinstance(failure, Died) and under_way(paper):  # One death is tried again at once.
            paper.now = next_deadline(paper.fleet, paper.now) or 0.0
            paper.feed(Tick())
            paper.feed(failure)
        assert len(paper.loads) <= 2
        paper.now = next_deadline(paper.fleet, paper.now) or 0.0
        paper.feed(Tick())
        assert paper.fleet.instance("a.gguf").state == "loading"
        assert under_way(paper) == set()


@pytest.mark.parametrize(
    "again", [OutOfMemory("no memory"), FileChanged("another file"), EngineFailed("died")]
)
def test_a_load_that_is_tried_again_at_once_is_still_under_way(again: Exception) -> None:
    """With a larger estimate, after the next look at the folder, or after one death."""
    paper = preloading("a")
    problem = again.as_problem()
    paper.feed(Died("a.gguf", problem) if isinstance(again, EngineFailed) else LoadFailed("a.gguf", problem))
    assert under_way(paper) == {"a.gguf"}
    paper.now += 10
    paper.feed(Tick())
    paper.loaded("a")
    assert under_way(paper) == set()


def test_a_preload_that_waits_for_memory_does_not_count() -> None:
    """For that of models that serve, for that of other processes, and for what never comes."""
    paper = preloading("a", "b", budget_mb=100)
    assert under_way(paper) == {"a.gguf"}, "b waits for the memory of a"
    assert paper.fleet.instance("b.gguf").wanted
    paper = preloading(budget_mb=100)
    left = DeviceRoom(name="CPU", kind=DeviceKind.CPU, total=400 * MIB, ceiling=50 * MIB, certain=None)
    paper.feed(DevicesChanged((left,)))
    paper.feed(Wanted("a.gguf"))
    assert paper.fleet.instance("a.gguf").wanted
    assert under_way(paper) == set()
    paper = preloading("a", budget_mb=50)
    assert under_way(paper) == set()


def test_a_preload_that_is_withdrawn_or_gone_does_not_count() -> None:
    """An operator unloads it, or its file is removed."""
    paper = preloading("a")
    paper.feed(UnloadAsked(operation="op", model_id="a.gguf"))
    assert under_way(paper) == set()
    assert preloads_under_way(paper.fleet, ["gone.gguf"]) == frozenset()
