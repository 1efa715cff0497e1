# SPDX-License-Identifier: GPL-3.0-only
"""A file that is not the one whose memory was planned: who waits for it waits for the next look at it."""

from __future__ import annotations

from support.fleets import Paper, limits, spec

from modeld.domain.instance_state import State
from modeld.domain.model import make_catalog
from modeld.errors import FileChanged, ModelFailed, Problem
from modeld.scheduler.admission import BREAKER_FAILURES
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import Load
from modeld.scheduler.inputs import CatalogChanged, LoadFailed, Tick
from modeld.scheduler.instance_outcomes import NEXT_LOOK_S
from modeld.scheduler.state import Fleet

CHANGED = FileChanged("its file grew").as_problem()
BROKEN = ModelFailed("it is damaged").as_problem()


def loads_of(paper: Paper) -> list[int]:
    """The times of modification of the files that were to be loaded."""
    return [effect.spec.modified_ns for effect in paper.effects if isinstance(effect, Load)]


def failed(problem: Problem) -> tuple[Paper, int]:
    """One request waits, and the load for it has failed."""
    paper = Paper([spec("a")], limits())
    ticket = paper.arrive("a")
    paper.feed(LoadFailed("a.gguf", problem))
    return paper, ticket


def test_the_request_gets_the_new_file() -> None:
    """The load is tried anew as soon as the folder was looked at, and the memory is that of the new one."""
    paper, ticket = failed(CHANGED)
    assert paper.refusals == {}
    assert paper.fleet.held == 0
    larger = spec("a", mb=70, modified_ns=7)
    paper.feed(CatalogChanged(make_catalog([larger])))
    assert loads_of(paper) == [0, 7]
    assert paper.fleet.held == larger.footprint.total
    paper.loaded("a")
    assert paper.grants == [ticket]


def test_without_a_change_it_is_tried_once_more_and_then_refused() -> None:
    """The folder does not answer, or the file changes all the time: whoever waits is told what it was."""
    paper, ticket = failed(CHANGED)
    assert next_deadline(paper.fleet, paper.now) == paper.now + NEXT_LOOK_S
    paper.now += NEXT_LOOK_S
    paper.feed(Tick())
    assert loads_of(paper) == [0, 0]
    paper.feed(LoadFailed("a.gguf", CHANGED))
    assert paper.refusals == {ticket: "model_failed"}


def test_a_file_that_changes_again_and_again_is_refused_too() -> None:
    """Being copied, for example: one more try, not one for each look."""
    paper, ticket = failed(CHANGED)
    paper.feed(CatalogChanged(make_catalog([spec("a", modified_ns=7)])))
    paper.feed(LoadFailed("a.gguf", CHANGED))
    paper.feed(CatalogChanged(make_catalog([spec("a", modified_ns=8)])))
    assert paper.refusals == {ticket: "model_failed"}
    assert loads_of(paper) == [0, 7]


def test_a_file_that_is_gone_is_a_model_that_is_not_found() -> None:
    """As for whoever comes later."""
    paper, ticket = failed(CHANGED)
    paper.feed(CatalogChanged(make_catalog([])))
    assert paper.refusals == {ticket: "model_not_found"}


def test_a_damaged_file_that_was_mended_is_tried_at_once() -> None:
    """The backoff was for the other one."""
    paper, first = failed(BROKEN)
    assert paper.refusals.keys() == {first}
    again = paper.arrive("a")
    assert paper.refusals.keys() == {first, again}, "the backoff holds"
    paper.feed(CatalogChanged(make_catalog([spec("a", modified_ns=7)])))
    paper.arrive("a")
    assert loads_of(paper) == [0, 7]
    assert paper.state("a") is State.LOADING


def test_an_open_breaker_stays_open_whatever_becomes_of_the_file() -> None:
    """Nobody makes room again and again for a file that is written to for minutes."""
    paper = Paper([spec("a")], limits())
    for number in range(BREAKER_FAILURES):
        paper.now = max(paper.now, retry_at(paper.fleet))
        paper.arrive("a")
        paper.feed(LoadFailed("a.gguf", BROKEN))
        assert len(loads_of(paper)) == number + 1
    open_until = retry_at(paper.fleet)
    paper.feed(CatalogChanged(make_catalog([spec("a", modified_ns=7)])))
    assert retry_at(paper.fleet) == open_until > paper.now


def retry_at(fleet: Fleet) -> float:
    """When the model may be tried again."""
    return fleet.instance("a.gguf").failures.retry_at
