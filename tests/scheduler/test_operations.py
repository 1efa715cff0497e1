# SPDX-License-Identifier: GPL-3.0-only
"""Operations on driver: what loads, unloads, switches and pins do to a fleet, and how each of them ends."""

from __future__ import annotations

import pytest
from support.operator_inputs import OperatorInputs
from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import catalog_of
from modeld.domain.operation import Phase
from modeld.errors import EngineFailed, ModelFailed
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import CutRequest, EndOperation
from modeld.scheduler.inputs import (
    CatalogChanged,
    DrainAll,
    InstanceDied,
    InstanceLoadFailed,
    InstanceStuck,
    ModelWanted,
    SlotReleased,
    SlotTaken,
    Tick,
)
from modeld.scheduler.operations import MOST_RUNNING

BAD = ModelFailed("the file is bad").as_problem()
DEAD = EngineFailed("the engine broke").as_problem()


def house(
    budget_mb: int | None = None, *names: str, **more: object
) -> tuple[SchedulerDriver, OperatorInputs]:
    """Models of 100 MiB with two slots."""
    driver = SchedulerDriver([spec(name) for name in names or ("a", "b", "c")], limits(budget_mb, **more))
    return driver, OperatorInputs(driver)


def busy(driver: SchedulerDriver, name: str) -> int:
    """Have a request in a slot of a model; return its ticket."""
    ticket = driver.arrive(name)
    if driver.state(name) is InstanceState.LOADING:
        driver.loaded(name)
    driver.feed(SlotTaken(ticket))
    return ticket


# --- load ---


def test_a_load_is_done_when_the_model_is_ready() -> None:
    """It is ordered at once, and ends with the load; nobody has to ask for text."""
    driver, operator = house()
    load = operator.load("a")
    assert driver.loads == ["a.gguf"]
    assert operator.stage(load).phase is Phase.LOADING
    driver.loaded("a")
    assert operator.ends == {load: "done"}
    assert driver.state("a") is InstanceState.READY


def test_a_load_of_a_model_that_is_ready_is_done_at_once() -> None:
    """It ends in the step in which it was asked for."""
    driver, operator = house()
    driver.up("a")
    load = operator.load("a")
    assert operator.ends == {load: "done"}
    assert driver.loads == ["a.gguf"]


def test_loads_and_requests_share_one_load() -> None:
    """Two operations and a request: one load, and all three have what they want when it ends."""
    driver, operator = house()
    first, ticket, second = operator.load("a"), driver.arrive("a"), operator.load("a")
    driver.loaded("a")
    assert driver.loads == ["a.gguf"]
    assert driver.grants == [ticket]
    assert operator.ends == {first: "done", second: "done"}


def test_a_load_has_idle_models_make_room_and_says_which() -> None:
    """`evicted` and the phase tell of it."""
    driver, operator = house(250)
    driver.up("a", "b")
    load = operator.load("c")
    assert driver.stops == ["a.gguf"]
    assert operator.stage(load).phase is Phase.EVICTING
    assert "a.gguf" in operator.stage(load).reason
    driver.stopped("a")
    driver.loaded("c")
    assert operator.end_of(load).operation.evicted == ("a.gguf",)


def test_a_load_has_busy_models_drained_when_it_waited_long_enough() -> None:
    """As a request would: nobody is cut, but the gate closes, and what holds the model goes first."""
    driver, operator = house(100)
    ticket = busy(driver, "a")
    driver.now += 10
    load = operator.load("b")
    assert operator.stage(load).phase is Phase.QUEUED
    assert next_deadline(driver.fleet, driver.now) == driver.now + 1
    driver.now += 2
    driver.feed(Tick())
    assert operator.stage(load).phase is Phase.DRAINING
    driver.feed(SlotReleased(ticket, served=True))
    driver.stopped("a")
    driver.loaded("b")
    assert operator.ends == {load: "done"}
    assert driver.cuts == {}


def test_a_load_that_fails_ends_with_the_reason() -> None:
    """Its problem is what the load said; nothing tries it again."""
    driver, operator = house()
    load = operator.load("a")
    driver.feed(InstanceLoadFailed("a.gguf", BAD))
    assert operator.ends == {load: "failed"}
    assert operator.end_of(load).problem == BAD
    driver.now += 100
    driver.feed(Tick())
    assert driver.loads == ["a.gguf"]


def test_a_load_whose_engine_dies_once_is_tried_again() -> None:
    """As for requests that wait: after the backoff, which the scheduler wakes for."""
    driver, operator = house()
    load = operator.load("a")
    driver.feed(InstanceDied("a.gguf", DEAD))
    assert operator.running == [load]
    due = next_deadline(driver.fleet, driver.now)
    assert due == 0.5
    driver.now = due
    driver.feed(Tick())
    driver.loaded("a")
    assert operator.ends == {load: "done"}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (spec("x", 300), "does_not_fit"),
        (spec("x", error="it is no GGUF file"), "model_failed"),
    ],
)
def test_what_cannot_be_loaded_is_refused_at_once(model: object, kind: str) -> None:
    """A load and a switch are refused, and nobody goes for them."""
    driver = SchedulerDriver([spec("a"), model], limits(200))
    operator = OperatorInputs(driver)
    driver.up("a")
    load, switch = operator.load("x"), operator.switch("x")
    assert operator.ends == {load: kind, switch: kind}
    assert driver.state("a") is InstanceState.READY
    assert driver.stops == []


def test_a_load_during_the_backoff_of_a_bad_file_is_refused() -> None:
    """As requests are: 503 with the time after which it may be tried."""
    driver, operator = house()
    operator.load("a")
    driver.feed(InstanceLoadFailed("a.gguf", BAD))
    again = operator.load("a")
    assert operator.ends[again] == "model_failed"


def test_a_model_whose_file_vanishes_fails_its_loads() -> None:
    """The operation ends when the catalogue changes, and what was loaded so far is given back."""
    driver, operator = house()
    load = operator.load("a")
    driver.feed(CatalogChanged(catalog_of([spec("b")])))
    assert operator.ends == {load: "failed"}
    assert operator.end_of(load).problem is not None
    assert operator.end_of(load).problem.status == 404
    assert driver.stops == ["a.gguf"]


def test_a_file_that_changes_while_it_is_loaded_is_loaded_anew_by_the_next_wish() -> None:
    """What was loaded is the old file: it is served to who waits, and goes when it is idle."""
    driver, operator = house()
    load = operator.load("a")
    driver.feed(CatalogChanged(catalog_of([spec("a", size_bytes=7), spec("b")])))
    driver.loaded("a")
    assert operator.ends == {load: "done"}
    assert driver.stops == ["a.gguf"]
    again = operator.load("a")
    driver.stopped("a")
    driver.loaded("a")
    assert operator.ends == {load: "done", again: "done"}
    assert driver.stops == ["a.gguf"]


@pytest.mark.parametrize(
    ("keep_alive_s", "until"), [(0.0, None), (5.0, 5.0), (-1.0, -1.0), (365 * 86400.0, 365 * 86400.0)]
)
def test_a_load_says_how_long_its_model_is_kept(keep_alive_s: float, until: float | None) -> None:
    """0: it goes as soon as it is idle, which is at once. Negative: by time never. A year is a year."""
    driver = SchedulerDriver([spec("a", ttl_s=60.0)], limits())
    operator = OperatorInputs(driver)
    load = operator.load("a", keep_alive_s=keep_alive_s)
    driver.loaded("a")
    assert operator.ends == {load: "done"}
    view = driver.fleet.instance("a.gguf")
    if until is None:
        assert driver.stops == ["a.gguf"]
    else:
        assert view.state is InstanceState.READY
        assert view.keep_until == (None if until < 0 else until)


def test_a_load_without_keep_alive_never_shortens_the_time_to_live() -> None:
    """The idle time begins again, and what was to be kept for longer is."""
    driver = SchedulerDriver([spec("a", ttl_s=60.0)], limits())
    operator = OperatorInputs(driver)
    operator.load("a", keep_alive_s=1000.0)
    driver.loaded("a")
    driver.now = 10.0
    operator.load("a")
    assert driver.fleet.instance("a.gguf").keep_until == 1000.0
    operator.load("a", keep_alive_s=0.5)
    driver.now = 10.4
    operator.load("a")
    assert driver.fleet.instance("a.gguf").keep_until == 70.4


# --- unload ---


def test_an_idle_model_is_unloaded_at_once() -> None:
    """It is done when its memory is back."""
    driver, operator = house()
    driver.up("a")
    unload = operator.unload("a")
    assert operator.stage(unload).phase is Phase.STOPPING
    driver.stopped("a")
    assert operator.ends == {unload: "done"}
    assert driver.fleet.held == 0


def test_an_unload_of_what_is_not_loaded_is_done_at_once() -> None:
    """There is nothing to do."""
    _, operator = house()
    unload = operator.unload("a")
    assert operator.ends == {unload: "done"}


def test_an_unload_lets_streams_end_and_lets_nobody_in() -> None:
    """What runs goes on; who comes waits, and is served by the next load."""
    driver, operator = house()
    ticket = busy(driver, "a")
    driver.now += 1
    unload = operator.unload("a")
    late = driver.arrive("a")
    assert late not in driver.grants
    assert operator.stage(unload).phase is Phase.DRAINING
    assert driver.stops == []
    driver.feed(SlotReleased(ticket, served=True))
    assert driver.stops == ["a.gguf"]
    driver.stopped("a")
    assert operator.ends == {unload: "done"}
    driver.loaded("a")
    assert driver.grants == [ticket, late]
    assert driver.cuts == {}
    assert driver.refusals == {}


def test_an_unload_by_force_cuts_and_refuses() -> None:
    """What runs gets a legal last event, who waits a 503; the model stops when its slots are empty."""
    driver, operator = house()
    first, second = busy(driver, "a"), busy(driver, "a")
    waiting = [driver.arrive("a") for _ in range(3)]
    unload = operator.unload("a", force=True)
    cut = {effect.ticket: effect.reason.finish.value for effect in driver.of(CutRequest)}
    assert cut.items() >= {first: "shutdown", second: "shutdown"}.items()
    assert set(cut) | set(driver.refusals) == {first, second, *waiting}
    assert set(driver.refusals.values()) <= {"unloaded"}
    assert driver.stops == []
    for ticket in cut:
        driver.feed(SlotReleased(ticket, served=False))
    driver.stopped("a")
    assert operator.ends == {unload: "done"}
    assert driver.loads == ["a.gguf"]


def test_an_unload_aborts_a_load_that_nobody_waits_for() -> None:
    """The load's own operation is cancelled: the last wish counts."""
    driver, operator = house()
    load = operator.load("a")
    unload = operator.unload("a")
    assert driver.stops == ["a.gguf"]
    driver.stopped("a")
    assert operator.ends == {load: "cancelled", unload: "done"}
    assert driver.fleet.held == 0


def test_an_unload_leaves_the_load_to_who_waits_for_it() -> None:
    """The request is served first; then the model goes."""
    driver, operator = house()
    ticket = driver.arrive("a")
    unload = operator.unload("a")
    assert driver.stops == []
    driver.loaded("a")
    assert driver.grants == [ticket]
    driver.now += 1
    driver.serve(ticket)
    driver.stopped("a")
    assert operator.ends == {unload: "done"}


def test_an_unload_by_force_aborts_the_load_and_refuses_who_waits() -> None:
    """Also when room is still being made for it."""
    driver, operator = house()
    ticket = driver.arrive("a")
    operator.unload("a", force=True)
    assert driver.refusals == {ticket: "unloaded"}
    assert driver.stops == ["a.gguf"]


def test_a_pinned_model_is_not_unloaded() -> None:
    """A conflict, which says how to let it go."""
    driver, operator = house()
    driver.up("a")
    operator.pin("a")
    unload, forced = operator.unload("a"), operator.unload("a", force=True)
    assert operator.ends == {unload: "conflict", forced: "conflict"}
    operator.pin("a", pinned=False)
    operator.unload("a")
    assert driver.stops == ["a.gguf"]


def test_pinning_a_model_that_drains_for_an_unload_keeps_it() -> None:
    """The unload is cancelled, and the gate opens."""
    driver, operator = house()
    busy(driver, "a")
    driver.now += 1
    unload = operator.unload("a")
    late = driver.arrive("a")
    operator.pin("a")
    assert operator.ends == {unload: "cancelled"}
    assert late in driver.grants


def test_a_later_load_keeps_a_model_that_still_drains() -> None:
    """The unload is cancelled, the gate opens, and nothing is loaded twice."""
    driver, operator = house()
    busy(driver, "a")
    driver.now += 1
    unload = operator.unload("a")
    load = operator.load("a")
    assert operator.ends == {unload: "cancelled", load: "done"}
    assert driver.arrive("a") in driver.grants
    assert driver.loads == ["a.gguf"]


def test_a_later_load_of_a_model_that_stops_loads_it_again() -> None:
    """Both are done, one after the other."""
    driver, operator = house()
    driver.up("a")
    unload, load = operator.unload("a"), operator.load("a")
    assert operator.stage(load).phase is Phase.STOPPING
    driver.stopped("a")
    assert operator.ends == {unload: "done"}
    driver.loaded("a")
    assert operator.ends == {unload: "done", load: "done"}


def test_an_unload_withdraws_a_preload() -> None:
    """What was to be there before requests come is not loaded any more."""
    driver, operator = house(100)
    ticket = busy(driver, "b")
    driver.feed(ModelWanted("a.gguf"))
    unload = operator.unload("a")
    assert operator.ends == {unload: "done"}
    driver.feed(SlotReleased(ticket, served=True))
    assert driver.loads == ["b.gguf"]


def test_streams_are_cut_after_evict_timeout_where_that_is_allowed() -> None:
    """With `cut_streams` an unload takes no longer than a reservation would; the scheduler wakes for it."""
    driver, operator = house(None, "a", cut_streams=True, evict_timeout_s=5.0)
    ticket = busy(driver, "a")
    driver.now += 1
    unload = operator.unload("a")
    due = next_deadline(driver.fleet, driver.now)
    assert due == 6.0
    driver.now = due
    driver.feed(Tick())
    assert driver.cuts == {ticket: "unloaded"}
    assert next_deadline(driver.fleet, driver.now) is None
    driver.feed(SlotReleased(ticket, served=False))
    driver.stopped("a")
    assert operator.ends == {unload: "done"}


def test_who_waited_for_the_load_has_evict_timeout_before_it_is_cut() -> None:
    """However long ago the unload was asked for: the model closes when it is ready."""
    driver, operator = house(None, "a", cut_streams=True, evict_timeout_s=5.0)
    ticket = driver.arrive("a")
    operator.unload("a")
    driver.now = 7.0
    driver.loaded("a")
    driver.feed(SlotTaken(ticket))
    assert driver.cuts == {}
    assert next_deadline(driver.fleet, driver.now) == 12.0
    driver.now = 12.0
    driver.feed(Tick())
    assert driver.cuts == {ticket: "unloaded"}


def test_an_engine_that_hangs_fails_its_unload() -> None:
    """Its memory does not come back, and a new unload is refused with the reason."""
    driver, operator = house()
    busy(driver, "a")
    driver.now += 1
    unload = operator.unload("a")
    driver.feed(InstanceStuck("a.gguf", DEAD))
    again = operator.unload("a")
    assert operator.ends == {unload: "failed", again: "model_failed"}


# --- switch ---


def test_a_switch_loads_first_and_then_unloads_the_others() -> None:
    """Where both fit, nothing goes before the new one is ready; pinned ones stay."""
    driver, operator = house(None, "a", "b", "c")
    driver.up("a", "b")
    operator.pin("b")
    switch = operator.switch("c")
    assert driver.stops == []
    driver.loaded("c")
    assert driver.stops == ["a.gguf"]
    driver.stopped("a")
    assert operator.ends == {switch: "done"}
    assert operator.end_of(switch).operation.evicted == ("a.gguf",)
    assert [driver.state(name) for name in "abc"] == [
        InstanceState.STOPPED,
        InstanceState.READY,
        InstanceState.READY,
    ]


def test_a_switch_to_a_model_that_does_not_fit_beside_the_other_makes_room_first() -> None:
    """The idle one goes at once; a busy one is asked at once, and its stream ends in peace."""
    driver, operator = house(100)
    ticket = busy(driver, "a")
    driver.now += 10
    switch = operator.switch("b")
    assert operator.stage(switch).phase is Phase.DRAINING
    driver.feed(SlotReleased(ticket, served=True))
    assert driver.stops == ["a.gguf"]
    driver.stopped("a")
    driver.loaded("b")
    assert operator.ends == {switch: "done"}
    assert operator.end_of(switch).operation.evicted == ("a.gguf",)


def test_a_switch_whose_load_fails_brings_back_what_went_for_it() -> None:
    """Never are both gone: what was loaded before is loaded again."""
    driver, operator = house(100)
    driver.up("a")
    switch = operator.switch("b")
    driver.stopped("a")
    driver.feed(InstanceLoadFailed("b.gguf", BAD))
    assert operator.ends == {switch: "failed"}
    assert driver.loads == ["a.gguf", "b.gguf", "a.gguf"]
    driver.loaded("a")
    assert driver.state("a") is InstanceState.READY


def test_a_switch_to_what_is_ready_unloads_the_others_at_once() -> None:
    """Busy ones take nobody new, and go when their streams have ended."""
    driver, operator = house()
    driver.up("a", "c")
    ticket = busy(driver, "b")
    driver.now += 1
    switch = operator.switch("a")
    assert driver.stops == ["c.gguf"]
    driver.stopped("c")
    assert operator.stage(switch).phase is Phase.DRAINING
    assert operator.stage(switch).progress == 0.5
    late = driver.arrive("b")
    assert late not in driver.grants
    driver.feed(SlotReleased(ticket, served=True))
    driver.stopped("b")
    assert operator.ends == {switch: "done"}


def test_a_load_that_was_asked_for_after_a_switch_stays() -> None:
    """The switch unloads what was there before, not what somebody wants since."""
    driver, operator = house()
    busy(driver, "a")
    driver.now += 1
    switch, load = operator.switch("b"), operator.load("a")
    driver.loaded("b")
    assert operator.ends[load] == "done"
    later = operator.load("a")
    assert operator.ends == {switch: "done", load: "done", later: "done"}
    assert driver.state("a") is InstanceState.READY


def test_a_later_switch_wins() -> None:
    """The first one is cancelled; its model goes when the second one is ready."""
    driver, operator = house()
    first = operator.switch("a")
    second = operator.switch("b")
    assert operator.ends == {first: "cancelled"}
    driver.loaded("b")
    assert driver.stops == ["a.gguf"]
    driver.stopped("a")
    assert operator.ends == {first: "cancelled", second: "done"}


# --- giving up, limits, the end ---


def test_giving_up_a_load_ends_it_only_if_nobody_else_waits() -> None:
    """A request keeps the load that an operator began."""
    driver, operator = house()
    alone, shared = operator.load("a"), operator.load("b")
    ticket = driver.arrive("b")
    operator.cancel(alone)
    operator.cancel(shared)
    assert driver.stops == ["a.gguf"]
    assert operator.ends == {alone: "cancelled", shared: "cancelled"}
    driver.loaded("b")
    assert driver.grants == [ticket]


def test_giving_up_an_unload_opens_the_gate() -> None:
    """As long as the model was not told to stop."""
    driver, operator = house()
    busy(driver, "a")
    driver.now += 1
    unload = operator.unload("a")
    late = driver.arrive("a")
    operator.cancel(unload)
    assert late in driver.grants
    assert operator.ends == {unload: "cancelled"}


def test_giving_up_what_is_not_known_changes_nothing() -> None:
    """It may have ended a moment ago."""
    driver, operator = house()
    before = driver.fleet
    operator.cancel("op7")
    assert driver.fleet == before


def test_only_so_many_operations_run_at_a_time() -> None:
    """More are refused with 429; one that ends makes a place."""
    driver, operator = house()
    first, *_ = [operator.load("a") for _ in range(MOST_RUNNING)]
    refused = operator.load("b")
    assert operator.ends == {refused: "queue_full"}
    operator.cancel(first)
    assert operator.load("b") not in operator.ends
    assert driver.loads == ["a.gguf", "b.gguf"]


def test_a_shutdown_ends_all_operations() -> None:
    """Those that run are cancelled with the reason, later ones are refused."""
    driver, operator = house()
    load = operator.load("a")
    driver.feed(DrainAll())
    later = operator.load("b")
    assert operator.ends == {load: "cancelled", later: "draining"}
    [end] = driver.of(EndOperation)
    assert end.problem is not None
    assert end.problem.status == 503


def test_a_pin_outlives_a_new_look_at_the_folder() -> None:
    """And it holds whatever the config says."""
    driver, operator = house(200)
    driver.up("a", "b")
    operator.pin("a")
    driver.feed(CatalogChanged(catalog_of([spec("a"), spec("b"), spec("c")])))
    operator.load("c")
    assert driver.stops == ["b.gguf"]
    assert driver.decisions.count("pin") == 1


def test_a_load_can_pin_its_model() -> None:
    """It is pinned when it is asked for, so nothing can come between."""
    driver, operator = house(100)
    operator.load("a", pin=True)
    driver.loaded("a")
    refused = operator.load("b")
    assert operator.ends[refused] == "does_not_fit"
