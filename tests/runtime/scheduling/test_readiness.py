# SPDX-License-Identifier: GPL-3.0-only
"""Which preloads keep the daemon from being ready, and what ends that."""

from __future__ import annotations

import pytest
from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.model import MIB
from modeld.errors import EngineFailed, FileChanged, ModelFailed, OutOfMemory
from modeld.memory.devices import DeviceKind, DeviceLimit
from modeld.runtime.scheduling.scheduler import preloads_under_way
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.inputs import (
    DevicesChanged,
    InstanceDied,
    InstanceLoadFailed,
    ModelWanted,
    Tick,
    UnloadRequested,
)

BROKEN = ModelFailed("the file ends too early").as_problem()
DEAD = EngineFailed("the engine broke").as_problem()


def under_way(driver: SchedulerDriver) -> set[str]:
    return set(preloads_under_way(driver.fleet, ["a.gguf", "b.gguf"]))


def preloading(*names: str, budget_mb: int | None = None) -> SchedulerDriver:
    driver = SchedulerDriver([spec("a", 60, preload=True), spec("b", 60, preload=True)], limits(budget_mb))
    for name in names:
        driver.feed(ModelWanted(f"{name}.gguf"))
    return driver


def test_a_preload_is_under_way_until_it_is_loaded() -> None:
    """Several are waited for together, and a model that is not preloaded is not."""
    driver = preloading("a", "b")
    assert under_way(driver) == {"a.gguf", "b.gguf"}
    driver.loaded("a")
    assert under_way(driver) == {"b.gguf"}
    driver.loaded("b")
    assert under_way(driver) == set()
    assert under_way(preloading()) == set()


def test_a_load_that_failed_ends_the_wait_also_while_it_is_tried_again() -> None:
    """A file that llama.cpp refuses, or that crashes it each time, does not keep the daemon unready."""
    for failure in (InstanceLoadFailed("a.gguf", BROKEN), InstanceDied("a.gguf", DEAD)):
        driver = preloading("a")
        driver.feed(failure)
        while isinstance(failure, InstanceDied) and under_way(driver):  # One death is tried again at once.
            driver.now = next_deadline(driver.fleet, driver.now) or 0.0
            driver.feed(Tick())
            driver.feed(failure)
        assert len(driver.loads) <= 2
        driver.now = next_deadline(driver.fleet, driver.now) or 0.0
        driver.feed(Tick())
        assert driver.fleet.instance("a.gguf").state == "loading"
        assert under_way(driver) == set()


@pytest.mark.parametrize(
    "again", [OutOfMemory("no memory"), FileChanged("another file"), EngineFailed("died")]
)
def test_a_load_that_is_tried_again_at_once_is_still_under_way(again: Exception) -> None:
    """With a larger estimate, after the next look at the folder, or after one death."""
    driver = preloading("a")
    problem = again.as_problem()
    driver.feed(
        InstanceDied("a.gguf", problem)
        if isinstance(again, EngineFailed)
        else InstanceLoadFailed("a.gguf", problem)
    )
    assert under_way(driver) == {"a.gguf"}
    driver.now += 10
    driver.feed(Tick())
    driver.loaded("a")
    assert under_way(driver) == set()


def test_a_preload_that_waits_for_memory_does_not_count() -> None:
    """For that of models that serve, for that of other processes, and for what never comes."""
    driver = preloading("a", "b", budget_mb=100)
    assert under_way(driver) == {"a.gguf"}, "b waits for the memory of a"
    assert driver.fleet.instance("b.gguf").wanted
    driver = preloading(budget_mb=100)
    left = DeviceLimit(name="CPU", kind=DeviceKind.CPU, total=400 * MIB, ceiling=50 * MIB, certain=None)
    driver.feed(DevicesChanged((left,)))
    driver.feed(ModelWanted("a.gguf"))
    assert driver.fleet.instance("a.gguf").wanted
    assert under_way(driver) == set()
    driver = preloading("a", budget_mb=50)
    assert under_way(driver) == set()


def test_a_preload_that_is_withdrawn_or_gone_does_not_count() -> None:
    """An operator unloads it, or its file is removed."""
    driver = preloading("a")
    driver.feed(UnloadRequested(operation="op", model_id="a.gguf"))
    assert under_way(driver) == set()
    assert preloads_under_way(driver.fleet, ["gone.gguf"]) == frozenset()
