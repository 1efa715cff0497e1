# SPDX-License-Identifier: GPL-3.0-only
"""A file that is not the one whose memory was planned: who waits for it waits for the next look at it."""

from __future__ import annotations

from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import catalog_of
from modeld.errors import FileChanged, ModelFailed, Problem
from modeld.scheduler.admission import BREAKER_FAILURES
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import StartLoad
from modeld.scheduler.inputs import CatalogChanged, InstanceLoadFailed, Tick
from modeld.scheduler.instance_outcomes import NEXT_LOOK_S
from modeld.scheduler.state import Fleet

CHANGED = FileChanged("its file grew").as_problem()
BROKEN = ModelFailed("it is damaged").as_problem()


def loads_of(driver: SchedulerDriver) -> list[int]:
    """The times of modification of the files that were to be loaded."""
    return [effect.spec.modified_ns for effect in driver.effects if isinstance(effect, StartLoad)]


def failed(problem: Problem) -> tuple[SchedulerDriver, int]:
    """One request waits, and the load for it has failed."""
    driver = SchedulerDriver([spec("a")], limits())
    ticket = driver.arrive("a")
    driver.feed(InstanceLoadFailed("a.gguf", problem))
    return driver, ticket


def test_the_request_gets_the_new_file() -> None:
    """The load is tried again as soon as the folder was looked at, and the memory is that of the new one."""
    driver, ticket = failed(CHANGED)
    assert driver.refusals == {}
    assert driver.fleet.held == 0
    larger = spec("a", mb=70, modified_ns=7)
    driver.feed(CatalogChanged(catalog_of([larger])))
    assert loads_of(driver) == [0, 7]
    assert driver.fleet.held == larger.footprint.total
    driver.loaded("a")
    assert driver.grants == [ticket]


def test_without_a_change_it_is_tried_once_more_and_then_refused() -> None:
    """The folder does not answer, or the file changes all the time: whoever waits is told what it was."""
    driver, ticket = failed(CHANGED)
    assert next_deadline(driver.fleet, driver.now) == driver.now + NEXT_LOOK_S
    driver.now += NEXT_LOOK_S
    driver.feed(Tick())
    assert loads_of(driver) == [0, 0]
    driver.feed(InstanceLoadFailed("a.gguf", CHANGED))
    assert driver.refusals == {ticket: "model_failed"}


def test_a_file_that_changes_again_and_again_is_refused_too() -> None:
    """Being copied, for example: one more try, not one for each look."""
    driver, ticket = failed(CHANGED)
    driver.feed(CatalogChanged(catalog_of([spec("a", modified_ns=7)])))
    driver.feed(InstanceLoadFailed("a.gguf", CHANGED))
    driver.feed(CatalogChanged(catalog_of([spec("a", modified_ns=8)])))
    assert driver.refusals == {ticket: "model_failed"}
    assert loads_of(driver) == [0, 7]


def test_a_file_that_is_gone_is_a_model_that_is_not_found() -> None:
    """As for whoever comes later."""
    driver, ticket = failed(CHANGED)
    driver.feed(CatalogChanged(catalog_of([])))
    assert driver.refusals == {ticket: "model_not_found"}


def test_a_damaged_file_that_was_mended_is_tried_at_once() -> None:
    """The backoff was for the other one."""
    driver, first = failed(BROKEN)
    assert driver.refusals.keys() == {first}
    again = driver.arrive("a")
    assert driver.refusals.keys() == {first, again}, "the backoff holds"
    driver.feed(CatalogChanged(catalog_of([spec("a", modified_ns=7)])))
    driver.arrive("a")
    assert loads_of(driver) == [0, 7]
    assert driver.state("a") is InstanceState.LOADING


def test_an_open_breaker_stays_open_whatever_becomes_of_the_file() -> None:
    """Nobody makes room again and again for a file that is written to for minutes."""
    driver = SchedulerDriver([spec("a")], limits())
    for number in range(BREAKER_FAILURES):
        driver.now = max(driver.now, retry_at(driver.fleet))
        driver.arrive("a")
        driver.feed(InstanceLoadFailed("a.gguf", BROKEN))
        assert len(loads_of(driver)) == number + 1
    open_until = retry_at(driver.fleet)
    driver.feed(CatalogChanged(catalog_of([spec("a", modified_ns=7)])))
    assert retry_at(driver.fleet) == open_until > driver.now


def retry_at(fleet: Fleet) -> float:
    """When the model may be tried again."""
    return fleet.instance("a.gguf").failures.retry_at
