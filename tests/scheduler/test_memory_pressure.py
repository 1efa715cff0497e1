# SPDX-License-Identifier: GPL-3.0-only
"""Other processes hold memory of the budget: who is refused, who goes, who stays, and what is told."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB
from modeld.domain.operation import OperationState
from modeld.memory.devices import DeviceKind, DeviceLimit
from modeld.scheduler.capacity import shortage
from modeld.scheduler.effects import EndOperation, RecordDecision, Refuse, StartLoad, StopInstance
from modeld.scheduler.inputs import DevicesChanged, LoadRequested, ModelWanted, SlotReleased, SlotTaken
from modeld.scheduler.plan import plan


def others(
    driver: SchedulerDriver, left_mb: int, certain_mb: int | None = None, total_mb: int = 400
) -> list[RecordDecision]:
    """Let other processes hold all but so many MiB of a machine."""
    room = DeviceLimit(
        name="CPU",
        kind=DeviceKind.CPU,
        total=total_mb * MIB,
        ceiling=left_mb * MIB,
        certain=None if certain_mb is None else certain_mb * MIB,
    )
    return [effect for effect in driver.feed(DevicesChanged((room,))) if isinstance(effect, RecordDecision)]


def three(budget_mb: int | None = 300, **more: object) -> SchedulerDriver:
    return SchedulerDriver([spec(name) for name in "abc"], limits(budget_mb, **more))


def test_a_request_that_does_not_fit_for_now_is_refused_with_the_numbers_and_evicts_nobody() -> None:
    """It says what is set, who holds what and what is left; and when it is worth to try again."""
    driver = three()
    driver.up("a")
    others(driver, 60)
    driver.arrive("b")
    problem = driver.of(Refuse)[-1].problem
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
    assert driver.state("a") is InstanceState.READY


def test_what_is_loaded_serves_on() -> None:
    """Requests for a model that is in memory need no room."""
    driver = three()
    driver.up("a")
    others(driver, 0)
    ticket = driver.arrive("a")
    driver.serve(ticket)
    assert driver.of(Refuse) == []
    assert driver.state("a") is InstanceState.READY


def test_less_room_means_that_others_are_evicted_for_a_new_load() -> None:
    """Three fit the budget, two fit what is left: the third one costs an idle model."""
    driver = three()
    driver.up("a", "b")
    others(driver, 220)
    driver.arrive("c")
    driver.stopped("a")
    assert driver.loads == ["a.gguf", "b.gguf", "c.gguf"]
    assert driver.fleet.held == 200 * MIB
    told = next(tell for tell in reversed(driver.of(RecordDecision)) if tell.action == "load")
    assert (told.numbers["budget_mb"], told.numbers["effective_budget_mb"]) == (300, 220)


def test_pinned_models_count_as_what_stays() -> None:
    """What could be made free is what others and pinned models leave."""
    driver = SchedulerDriver([spec("a", pinned=True), spec("b")], limits(300, margin=20 * MIB))
    driver.up("a")
    others(driver, 210)
    driver.arrive("b")
    problem = driver.of(Refuse)[-1].problem
    assert problem.kind == "memory_taken"
    assert "less a margin of 20 MiB" in problem.message
    assert "100 MiB of models that stay" in problem.message
    assert problem.details["available_mb"] == 90


def test_a_model_too_large_for_the_budget_is_told_so_and_not_to_wait_for_others() -> None:
    """507 comes before 503: no end of other processes would help."""
    driver = SchedulerDriver([spec("a", 400)], limits(300))
    others(driver, 60)
    driver.arrive("a")
    assert driver.of(Refuse)[-1].problem.kind == "does_not_fit"


def test_who_waits_is_told_when_the_memory_is_taken() -> None:
    """A request behind a reservation that cannot be met any more does not wait in vain."""
    driver = three(100)
    first = driver.arrive("a")
    driver.loaded("a")
    driver.feed(SlotTaken(first))
    waiting = driver.arrive("b")
    assert driver.of(Refuse) == []
    others(driver, 50)
    assert [(effect.ticket, effect.problem.kind) for effect in driver.of(Refuse)] == [
        (waiting, "memory_taken")
    ]
    driver.feed(SlotReleased(first, served=True))
    assert driver.state("a") is InstanceState.READY
    assert driver.fleet.reservations == ()


def test_idle_models_give_way_once_it_is_certain_and_only_as_many_as_needed() -> None:
    """A spike makes nobody go; then the one whose loss costs least goes, and the others stay."""
    driver = three()
    driver.up("a", "b", "c")
    driver.now += 10
    driver.serve(driver.arrive("a"))
    others(driver, 150)
    others(driver, 150, certain_mb=300)
    assert driver.of(StopInstance) == []
    told = others(driver, 210, certain_mb=210)
    assert [stop.model_id for stop in driver.of(StopInstance)] == ["b.gguf"]
    (unload,) = [tell for tell in told if tell.action == "unload"]
    assert (unload.model_id, unload.kind) == ("b.gguf", "foreign")
    assert "which leaves 210 MiB to models, less than is loaded" in unload.reason
    others(driver, 200, certain_mb=200)
    driver.stopped("b")
    assert len(driver.of(StopInstance)) == 1, "what goes already is enough"


def test_busy_and_pinned_models_stay_whatever_others_take() -> None:
    """Nobody is cut: a busy model goes when it is idle, a pinned one never."""
    driver = SchedulerDriver([spec("a"), spec("b", pinned=True), spec("c")], limits(300))
    driver.up("b", "c")
    ticket = driver.arrive("a")
    driver.loaded("a")
    driver.feed(SlotTaken(ticket))
    others(driver, 0, certain_mb=0)
    assert [stop.model_id for stop in driver.of(StopInstance)] == ["c.gguf"]
    driver.feed(SlotReleased(ticket, served=True))
    assert [stop.model_id for stop in driver.of(StopInstance)] == ["c.gguf", "a.gguf"]
    assert driver.state("b") is InstanceState.READY


def test_a_preload_waits_for_others_to_end() -> None:
    """It is loaded as soon as the memory is back."""
    driver = three()
    others(driver, 60)
    driver.feed(ModelWanted("a.gguf"))
    assert driver.loads == []
    others(driver, 100)
    assert driver.loads == ["a.gguf"]


def test_an_operators_load_fails_with_the_numbers() -> None:
    """One that waits is ended when the memory is taken."""
    driver = three(100)
    first = driver.arrive("a")
    driver.loaded("a")
    driver.feed(SlotTaken(first))
    driver.feed(LoadRequested(operation="op", model_id="b.gguf"))
    others(driver, 50)
    (end,) = driver.of(EndOperation)
    assert end.state is OperationState.FAILED
    assert end.problem is not None
    assert end.problem.kind == "memory_taken"


def test_an_unlimited_budget_stays_unlimited() -> None:
    """Who sets no budget has none, whatever others hold."""
    driver = three(None)
    assert others(driver, 0, certain_mb=0) == []
    driver.up("a", "b", "c")
    assert driver.of(StopInstance) == []
    assert driver.fleet.free is None
    assert shortage(driver.fleet) is None


def test_the_budget_is_told_when_it_falls_when_it_changes_by_much_and_when_it_is_whole_again() -> None:
    """Small steps are not decisions; the way back is."""
    driver = three(3200)
    told = [len(others(driver, mb, total_mb=4000)) for mb in (4000, 3180, 2000, 1950, 2040, 2200, 3190, 3200)]
    assert told == [0, 0, 1, 0, 0, 1, 1, 1]
    texts = [tell.reason for tell in driver.of(RecordDecision)]
    assert texts[0] == (
        "3200 MiB are set, but other processes hold 2000 of the 4000 MiB of CPU, "
        "which leaves 2000 MiB to models"
    )
    assert texts[-1] == "all 3200 MiB that are set can be given out again"
    assert {tell.action for tell in driver.of(RecordDecision)} == {"budget"}


def test_a_plan_says_that_others_hold_the_memory() -> None:
    """The same words as the refusal, and the budget of now."""
    driver = three()
    others(driver, 60)
    told = plan(driver.fleet, driver.fleet.catalog.models["a.gguf"], driver.now)
    assert not told.fits
    assert "other processes hold 340 of the 400 MiB of CPU" in told.verdict
    assert (told.budget_mb, told.effective_budget_mb, told.free_mb) == (300, 60, 60)


@pytest.mark.parametrize(("left_mb", "free_mb"), [(500, 300), (300, 300), (299, 299), (0, 0)])
def test_the_budget_of_now_is_what_is_set_or_what_is_left(left_mb: int, free_mb: int) -> None:
    """Never more than what is set."""
    driver = three()
    others(driver, left_mb, total_mb=1000)
    assert driver.fleet.free == free_mb * MIB
    assert replace(driver.fleet, devices=()).free == 300 * MIB
    assert driver.of(StartLoad) == []
