# SPDX-License-Identifier: GPL-3.0-only
"""Other processes hold memory of the budget: who is refused, who goes, who stays, and what is told."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from support.fleets import Paper, limits, spec

from modeld.domain.instance_state import State
from modeld.domain.model import MIB
from modeld.domain.operation import OperationState
from modeld.memory.devices import DeviceKind, DeviceRoom
from modeld.scheduler.capacity import shortage
from modeld.scheduler.effects import EndOperation, Load, Refuse, Stop, Tell
from modeld.scheduler.inputs import DevicesChanged, GotSlot, LoadAsked, Released, Wanted
from modeld.scheduler.plan import plan


def others(paper: Paper, left_mb: int, certain_mb: int | None = None, total_mb: int = 400) -> list[Tell]:
    """Let other processes hold all but so many MiB of a machine."""
    room = DeviceRoom(
        name="CPU",
        kind=DeviceKind.CPU,
        total=total_mb * MIB,
        ceiling=left_mb * MIB,
        certain=None if certain_mb is None else certain_mb * MIB,
    )
    return [effect for effect in paper.feed(DevicesChanged((room,))) if isinstance(effect, Tell)]


def three(budget_mb: int | None = 300, **more: object) -> Paper:
    return Paper([spec(name) for name in "abc"], limits(budget_mb, **more))


def test_a_request_that_does_not_fit_for_now_is_refused_with_the_numbers_and_evicts_nobody() -> None:
    """It says what is set, who holds what and what is left; and when it is worth to try again."""
    paper = three()
    paper.up("a")
    others(paper, 60)
    paper.arrive("b")
    problem = paper.of(Refuse)[-1].problem
    assert (problem.kind, problem.status, problem.retry_after_s) == ("memory_taken", 503, 10.0)
    assert "needs about 100 MiB" in problem.message
    assert "300 MiB are set, but other processes hold 340 of the 400 MiB of CPU, which leaves 60 MiB" in (
        problem.message
    )
    assert problem.details == {
        "need_mb": 100,
        "budget_mb": 300,
        "effective_budget_mb": 60,
        "available_mb": 60,
    }
    assert paper.state("a") is State.READY


def test_what_is_loaded_serves_on() -> None:
    """Requests for a model that is in memory need no room."""
    paper = three()
    paper.up("a")
    others(paper, 0)
    ticket = paper.arrive("a")
    paper.serve(ticket)
    assert paper.of(Refuse) == []
    assert paper.state("a") is State.READY


def test_less_room_means_that_others_are_evicted_for_a_new_load() -> None:
    """Three fit the budget, two fit what is left: the third one costs an idle model."""
    paper = three()
    paper.up("a", "b")
    others(paper, 220)
    paper.arrive("c")
    paper.stopped("a")
    assert paper.loads == ["a.gguf", "b.gguf", "c.gguf"]
    assert paper.fleet.held == 200 * MIB
    told = next(tell for tell in reversed(paper.of(Tell)) if tell.action == "load")
    assert (told.numbers["budget_mb"], told.numbers["effective_budget_mb"]) == (300, 220)


def test_pinned_models_count_as_what_stays() -> None:
    """What could be made free is what others and pinned models leave."""
    paper = Paper([spec("a", pinned=True), spec("b")], limits(300, margin=20 * MIB))
    paper.up("a")
    others(paper, 210)
    paper.arrive("b")
    problem = paper.of(Refuse)[-1].problem
    assert problem.kind == "memory_taken"
    assert "less a margin of 20 MiB" in problem.message
    assert "100 MiB of models that stay" in problem.message
    assert problem.details["available_mb"] == 90


def test_a_model_too_large_for_the_budget_is_told_so_and_not_to_wait_for_others() -> None:
    """507 comes before 503: no end of other processes would help."""
    paper = Paper([spec("a", 400)], limits(300))
    others(paper, 60)
    paper.arrive("a")
    assert paper.of(Refuse)[-1].problem.kind == "does_not_fit"


def test_who_waits_is_told_when_the_memory_is_taken() -> None:
    """A request behind a claim that cannot be met any more does not wait in vain."""
    paper = three(100)
    first = paper.arrive("a")
    paper.loaded("a")
    paper.feed(GotSlot(first))
    waiting = paper.arrive("b")
    assert paper.of(Refuse) == []
    others(paper, 50)
    assert [(effect.ticket, effect.problem.kind) for effect in paper.of(Refuse)] == [
        (waiting, "memory_taken")
    ]
    paper.feed(Released(first, served=True))
    assert paper.state("a") is State.READY
    assert paper.fleet.claims == ()


def test_idle_models_give_way_once_it_is_certain_and_only_as_many_as_needed() -> None:
    """A spike makes nobody go; then the one whose loss costs least goes, and the others stay."""
    paper = three()
    paper.up("a", "b", "c")
    paper.now += 10
    paper.serve(paper.arrive("a"))
    others(paper, 150)
    others(paper, 150, certain_mb=300)
    assert paper.of(Stop) == []
    told = others(paper, 210, certain_mb=210)
    assert [stop.model_id for stop in paper.of(Stop)] == ["b.gguf"]
    (unload,) = [tell for tell in told if tell.action == "unload"]
    assert (unload.model_id, unload.kind) == ("b.gguf", "foreign")
    assert "which leaves 210 MiB to models, less than is loaded" in unload.reason
    others(paper, 200, certain_mb=200)
    paper.stopped("b")
    assert len(paper.of(Stop)) == 1, "what goes already is enough"


def test_busy_and_pinned_models_stay_whatever_others_take() -> None:
    """Nobody is cut: a busy model goes when it is idle, a pinned one never."""
    paper = Paper([spec("a"), spec("b", pinned=True), spec("c")], limits(300))
    paper.up("b", "c")
    ticket = paper.arrive("a")
    paper.loaded("a")
    paper.feed(GotSlot(ticket))
    others(paper, 0, certain_mb=0)
    assert [stop.model_id for stop in paper.of(Stop)] == ["c.gguf"]
    paper.feed(Released(ticket, served=True))
    assert [stop.model_id for stop in paper.of(Stop)] == ["c.gguf", "a.gguf"]
    assert paper.state("b") is State.READY


def test_a_preload_waits_for_others_to_end() -> None:
    """It is loaded as soon as the memory is back."""
    paper = three()
    others(paper, 60)
    paper.feed(Wanted("a.gguf"))
    assert paper.loads == []
    others(paper, 100)
    assert paper.loads == ["a.gguf"]


def test_an_operators_load_fails_with_the_numbers() -> None:
    """One that waits is ended when the memory is taken."""
    paper = three(100)
    first = paper.arrive("a")
    paper.loaded("a")
    paper.feed(GotSlot(first))
    paper.feed(LoadAsked(operation="op", model_id="b.gguf"))
    others(paper, 50)
    (end,) = paper.of(EndOperation)
    assert end.state is OperationState.FAILED
    assert end.problem is not None
    assert end.problem.kind == "memory_taken"


def test_an_unlimited_budget_stays_unlimited() -> None:
    """Who sets no budget has none, whatever others hold."""
    paper = three(None)
    assert others(paper, 0, certain_mb=0) == []
    paper.up("a", "b", "c")
    assert paper.of(Stop) == []
    assert paper.fleet.free is None
    assert shortage(paper.fleet) is None


def test_the_budget_is_told_when_it_falls_when_it_changes_by_much_and_when_it_is_whole_again() -> None:
    """Small steps are not decisions; the way back is."""
    paper = three(3200)
    told = [len(others(paper, mb, total_mb=4000)) for mb in (4000, 3180, 2000, 1950, 2040, 2200, 3190, 3200)]
    assert told == [0, 0, 1, 0, 0, 1, 1, 1]
    texts = [tell.reason for tell in paper.of(Tell)]
    assert texts[0] == (
        "3200 MiB are set, but other processes hold 2000 of the 4000 MiB of CPU, "
        "which leaves 2000 MiB to models"
    )
    assert texts[-1] == "all 3200 MiB that are set can be given out again"
    assert {tell.action for tell in paper.of(Tell)} == {"budget"}


def test_a_plan_says_that_others_hold_the_memory() -> None:
    """The same words as the refusal, and the budget of now."""
    paper = three()
    others(paper, 60)
    told = plan(paper.fleet, paper.fleet.catalog.models["a.gguf"], paper.now)
    assert not told.fits
    assert "other processes hold 340 of the 400 MiB of CPU" in told.verdict
    assert (told.budget_mb, told.effective_budget_mb, told.free_mb) == (300, 60, 60)


@pytest.mark.parametrize(("left_mb", "free_mb"), [(500, 300), (300, 300), (299, 299), (0, 0)])
def test_the_budget_of_now_is_what_is_set_or_what_is_left(left_mb: int, free_mb: int) -> None:
    """Never more than what is set."""
    paper = three()
    others(paper, left_mb, total_mb=1000)
    assert paper.fleet.free == free_mb * MIB
    assert replace(paper.fleet, devices=()).free == 300 * MIB
    assert paper.of(Load) == []
