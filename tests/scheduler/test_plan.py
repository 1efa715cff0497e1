# SPDX-License-Identifier: GPL-3.0-only
"""Plans: what is told beforehand is what the scheduler then does."""

from __future__ import annotations

import os
import random

import pytest
from msgspec.structs import replace
from support.operator_inputs import OperatorInputs
from support.scheduler_driver import SchedulerDriver, limits, spec
from support.scheduler_world import NAMES, SchedulerWorld

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, Footprint
from modeld.errors import ModelFailed
from modeld.scheduler.effects import RecordDecision, RefuseOperation, StartLoad
from modeld.scheduler.inputs import DrainAll, InstanceLoadFailed, LoadRequested, SlotTaken
from modeld.scheduler.plan import LoadPlan, plan

SCHEDULES = int(os.environ.get("MODELD_SCHEDULES", "10000")) // 50
BAD = ModelFailed("the file is bad").as_problem()


def plan_of(driver: SchedulerDriver, name: str, **more: object) -> LoadPlan:
    model = driver.fleet.catalog.models[f"{name}.gguf"]
    return plan(driver.fleet, replace(model, **more), driver.now)


def three(budget_mb: int | None, **more: object) -> SchedulerDriver:
    return SchedulerDriver([spec(name) for name in "abc"], limits(budget_mb, **more))


def loaded(driver: SchedulerDriver, name: str, seconds: float = 1.0) -> None:
    """Load a model, which takes so long, and serve one request with it."""
    ticket = driver.arrive(name)
    driver.now += seconds
    driver.loaded(name)
    driver.serve(ticket)


def test_a_plan_changes_nothing() -> None:
    """It is played on a copy."""
    driver = three(250)
    loaded(driver, "a")
    before = driver.fleet
    plan_of(driver, "b")
    assert driver.fleet is before


def test_what_fits_beside_the_others_is_told_with_its_load_time() -> None:
    """The load time is that of the last load, else a guess that says that it is one."""
    driver = three(250)
    first = plan_of(driver, "a")
    assert first.fits
    assert first.evicts == first.drains == ()
    assert (first.needs_mb, first.free_mb, first.budget_mb) == (100, 250, 250)
    assert "never loaded" in first.verdict
    loaded(driver, "a", 1.2)
    OperatorInputs(driver).unload("a")
    driver.stopped("a")
    told = plan_of(driver, "a")
    assert told.verdict == "a.gguf needs 100 MiB and fits in what is free (250 MiB); ready in about 1.2 s"
    assert (told.wait_ms, told.load_ms) == (0, 1200)
    assert plan_of(driver, "b", footprint=Footprint(weights=200 * MIB)).load_ms == 2400


def test_who_would_go_is_told_with_the_reason() -> None:
    """A sentence that a person understands, and the same as values."""
    driver = three(200)
    loaded(driver, "c", 1.2)
    OperatorInputs(driver).unload("c")
    driver.stopped("c")
    loaded(driver, "a", 2.0)
    loaded(driver, "b", 9.0)
    driver.now += 40
    told = plan_of(driver, "c")
    assert told.verdict == (
        "c.gguf needs 100 MiB and fits after evicting a.gguf (idle for 49 s, 100 MiB); ready in about 1.2 s"
    )
    [gone] = told.evicts
    assert (gone.model_id, gone.mb, gone.why) == ("a.gguf", 100, "idle for 49 s")


def test_busy_models_would_be_asked_and_their_requests_end_first() -> None:
    """With what is known of how long these take, and without a number where nothing is."""
    driver = three(100, max_wait_before_drain_s=2.0, quantum_s=2.0)
    ticket = driver.arrive("a")
    driver.loaded("a")
    driver.feed(SlotTaken(ticket))
    driver.now += 10
    told = plan_of(driver, "b")
    assert [gone.model_id for gone in told.drains] == ["a.gguf"]
    assert told.wait_ms == 2000
    assert "1 request holds it" in told.verdict
    assert "which nobody knows" in told.verdict
    view = driver.fleet.instance("a.gguf")
    driver.fleet = driver.fleet.with_instance(replace(view, service_s=3.0))
    assert plan_of(driver, "b").wait_ms == 5000


def test_what_never_fits_is_told_with_the_numbers_and_who_holds_them() -> None:
    """The verdict is the refusal that a request would get."""
    driver = SchedulerDriver([spec("a", 150, pinned=True), spec("b", 100)], limits(200))
    loaded(driver, "a")
    told = plan_of(driver, "b")
    assert not told.fits
    assert "150 MiB (a.gguf)" in told.verdict
    assert "let a pinned model go" in told.verdict
    assert told.free_mb == 50


def test_a_budget_below_every_model_and_a_margin_above_it_say_so() -> None:
    """No model fits, and the plan says by how much."""
    for terms in ({"budget_mb": 10}, {"budget_mb": 100, "margin": 200 * MIB}):
        driver = SchedulerDriver([spec(name) for name in "ab"], limits(**terms))
        told = plan_of(driver, "a")
        assert not told.fits
        assert "raise vram_budget_mb" in told.verdict


def test_a_model_that_failed_or_a_daemon_that_stops_has_no_plan() -> None:
    """What stands against a load now is the verdict."""
    driver = three(None)
    driver.arrive("a")
    driver.feed(InstanceLoadFailed("a.gguf", BAD))
    assert "tried again" in plan_of(driver, "a").verdict
    driver.feed(DrainAll())
    told = plan_of(driver, "b")
    assert not told.fits
    assert "shutting down" in told.verdict


def test_what_is_loaded_or_being_loaded_needs_no_room() -> None:
    """Ready: at once. Loading: what is left of it."""
    driver = three(100)
    driver.arrive("a")
    driver.now += 1
    assert "is being loaded already" in plan_of(driver, "a").verdict
    driver.loaded("a")
    assert plan_of(driver, "a").verdict == "a.gguf is loaded and takes requests"


def test_another_size_is_planned_as_if_the_present_instance_were_gone() -> None:
    """With more context it may not fit, although it does now."""
    driver = three(120)
    loaded(driver, "a")
    options = driver.fleet.catalog.models["a.gguf"].options
    larger = {"options": replace(options, ctx=16384), "footprint": Footprint(weights=110 * MIB)}
    told = plan_of(driver, "a", **larger)
    assert told.fits
    assert (told.evicts, told.kv_cells) == ((), 16384)
    assert not plan_of(driver, "a", **{**larger, "footprint": Footprint(weights=130 * MIB)}).fits


def test_a_plan_behind_others_says_for_whom_room_is_made() -> None:
    """The reservation of another model comes first."""
    driver = three(100, max_wait_before_drain_s=0.0, quantum_s=0.0)
    ticket = driver.arrive("a")
    driver.loaded("a")
    driver.feed(SlotTaken(ticket))
    driver.now += 1
    driver.arrive("b")
    assert driver.fleet.reservations
    told = plan_of(driver, "c")
    assert told.fits
    assert "b.gguf" in told.verdict


@pytest.mark.parametrize("part", range(2))
def test_plans_in_random_states_are_what_the_scheduler_then_does(part: int) -> None:
    """In any state of the fleet: refused or not, loaded at once or not, and who is evicted at once."""
    chance = random.Random(part)  # noqa: S311  # the same schedules every time
    compared = 0
    for _ in range(SCHEDULES // 2):
        world = SchedulerWorld(chance.randrange)
        for _ in range(chance.randrange(60)):
            world.act()
        driver = world.driver
        for name in NAMES:
            model = driver.fleet.catalog.models[name]
            told = plan(driver.fleet, model, driver.now)
            copy = SchedulerDriver([], driver.fleet.limits)
            copy.fleet, copy.now = driver.fleet, driver.now
            effects = copy.feed(LoadRequested(operation="new", model_id=name))
            refused = any(isinstance(effect, RefuseOperation) for effect in effects)
            assert told.fits is not refused
            if refused:
                continue
            compared += 1
            evicted = {
                it.model_id for it in effects if isinstance(it, RecordDecision) and it.action == "evict"
            }
            victims = {gone.model_id for gone in told.evicts}
            for reservation in copy.fleet.reservations:
                if reservation.model_id == name and reservation.committed:
                    assert evicted & set(reservation.victims) <= victims
            if any(isinstance(effect, StartLoad) and effect.spec.id == name for effect in effects):
                assert told.wait_ms == 0
                assert not told.evicts
            state = driver.fleet.instance(name).state
            assert (state is InstanceState.READY) <= ("takes requests" in told.verdict)
    assert compared
