# SPDX-License-Identifier: GPL-3.0-only
"""Operations on paper: what loads, unloads, switches and pins do to a fleet, and how each of them ends."""

from __future__ import annotations

import pytest
from support.fleets import Paper, limits, spec
from support.lever import Lever

from modeld.domain.instance_state import State
from modeld.domain.model import make_catalog
from modeld.domain.operation import Phase
from modeld.errors import EngineFailed, ModelFailed
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import Cut, EndOperation
from modeld.scheduler.inputs import (
    CatalogChanged,
    Died,
    Drain,
    GotSlot,
    LoadFailed,
    Released,
    Stuck,
    Tick,
    Wanted,
)
from modeld.scheduler.operations import MOST_RUNNING

BAD = ModelFailed("the file is bad").as_problem()
DEAD = EngineFailed("the engine broke").as_problem()


def house(budget_mb: int | None = None, *names: str, **more: object) -> tuple[Paper, Lever]:
    """Models of 100 MiB with two slots."""
    paper = Paper([spec(name) for name in names or ("a", "b", "c")], limits(budget_mb, **more))
    return paper, Lever(paper)


def busy(paper: Paper, name: str) -> int:
    """Have a request in a slot of a model; return its ticket."""
    ticket = paper.arrive(name)
    if paper.state(name) is State.LOADING:
        paper.loaded(name)
    paper.feed(GotSlot(ticket))
    return ticket


# --- load ---


def test_a_load_is_done_when_the_model_is_ready() -> None:
    """It is ordered at once, and ends with the load; nobody has to ask for text."""
    paper, lever = house()
    load = lever.load("a")
    assert paper.loads == ["a.gguf"]
    assert lever.stage(load).phase is Phase.LOADING
    paper.loaded("a")
    assert lever.ends == {load: "done"}
    assert paper.state("a") is State.READY


def test_a_load_of_a_model_that_is_ready_is_done_at_once() -> None:
    """It ends in the step in which it was asked for."""
    paper, lever = house()
    paper.up("a")
    load = lever.load("a")
    assert lever.ends == {load: "done"}
    assert paper.loads == ["a.gguf"]


def test_loads_and_requests_share_one_load() -> None:
    """Two operations and a request: one load, and all three have what they want when it ends."""
    paper, lever = house()
    first, ticket, second = lever.load("a"), paper.arrive("a"), lever.load("a")
    paper.loaded("a")
    assert paper.loads == ["a.gguf"]
    assert paper.grants == [ticket]
    assert lever.ends == {first: "done", second: "done"}


def test_a_load_has_idle_models_make_room_and_says_which() -> None:
    """`evicted` and the phase tell of it."""
    paper, lever = house(250)
    paper.up("a", "b")
    load = lever.load("c")
    assert paper.stops == ["a.gguf"]
    assert lever.stage(load).phase is Phase.EVICTING
    assert "a.gguf" in lever.stage(load).reason
    paper.stopped("a")
    paper.loaded("c")
    assert lever.end_of(load).operation.evicted == ("a.gguf",)


def test_a_load_has_busy_models_drained_when_it_waited_long_enough() -> None:
    """As a request would: nobody is cut, but the gate closes, and what holds the model goes first."""
    paper, lever = house(100)
    ticket = busy(paper, "a")
    paper.now += 10
    load = lever.load("b")
    assert lever.stage(load).phase is Phase.QUEUED
    assert next_deadline(paper.fleet, paper.now) == paper.now + 1
    paper.now += 2
    paper.feed(Tick())
    assert lever.stage(load).phase is Phase.DRAINING
    paper.feed(Released(ticket, served=True))
    paper.stopped("a")
    paper.loaded("b")
    assert lever.ends == {load: "done"}
    assert paper.cuts == {}


def test_a_load_that_fails_ends_with_the_reason() -> None:
    """Its problem is what the load said; nothing tries it again."""
    paper, lever = house()
    load = lever.load("a")
    paper.feed(LoadFailed("a.gguf", BAD))
    assert lever.ends == {load: "failed"}
    assert lever.end_of(load).problem == BAD
    paper.now += 100
    paper.feed(Tick())
    assert paper.loads == ["a.gguf"]


def test_a_load_whose_engine_dies_once_is_tried_again() -> None:
    """As for requests that wait: after the backoff, which the scheduler wakes for."""
    paper, lever = house()
    load = lever.load("a")
    paper.feed(Died("a.gguf", DEAD))
    assert lever.running == [load]
    due = next_deadline(paper.fleet, paper.now)
    assert due == 0.5
    paper.now = due
    paper.feed(Tick())
    paper.loaded("a")
    assert lever.ends == {load: "done"}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (spec("x", 300), "does_not_fit"),
        (spec("x", error="it is no GGUF file"), "model_failed"),
    ],
)
def test_what_cannot_be_loaded_is_refused_at_once(model: object, kind: str) -> None:
    """A load and a switch are refused, and nobody goes for them."""
    paper = Paper([spec("a"), model], limits(200))
    lever = Lever(paper)
    paper.up("a")
    load, switch = lever.load("x"), lever.switch("x")
    assert lever.ends == {load: kind, switch: kind}
    assert paper.state("a") is State.READY
    assert paper.stops == []


def test_a_load_during_the_backoff_of_a_bad_file_is_refused() -> None:
    """As requests are: 503 with the time after which it may be tried."""
    paper, lever = house()
    lever.load("a")
    paper.feed(LoadFailed("a.gguf", BAD))
    again = lever.load("a")
    assert lever.ends[again] == "model_failed"


def test_a_model_whose_file_vanishes_fails_its_loads() -> None:
    """The operation ends when the catalogue changes, and what was loaded so far is given back."""
    paper, lever = house()
    load = lever.load("a")
    paper.feed(CatalogChanged(make_catalog([spec("b")])))
    assert lever.ends == {load: "failed"}
    assert lever.end_of(load).problem is not None
    assert lever.end_of(load).problem.status == 404
    assert paper.stops == ["a.gguf"]


def test_a_file_that_changes_while_it_is_loaded_is_loaded_anew_by_the_next_wish() -> None:
    """What was loaded is the old file: it is served to who waits, and goes when it is idle."""
    paper, lever = house()
    load = lever.load("a")
    paper.feed(CatalogChanged(make_catalog([spec("a", size_bytes=7), spec("b")])))
    paper.loaded("a")
    assert lever.ends == {load: "done"}
    assert paper.stops == ["a.gguf"]
    again = lever.load("a")
    paper.stopped("a")
    paper.loaded("a")
    assert lever.ends == {load: "done", again: "done"}
    assert paper.stops == ["a.gguf"]


@pytest.mark.parametrize(
    ("keep_alive_s", "until"), [(0.0, None), (5.0, 5.0), (-1.0, -1.0), (365 * 86400.0, 365 * 86400.0)]
)
def test_a_load_says_how_long_its_model_is_kept(keep_alive_s: float, until: float | None) -> None:
    """0: it goes as soon as it is idle, which is at once. Negative: by time never. A year is a year."""
    paper = Paper([spec("a", ttl_s=60.0)], limits())
    lever = Lever(paper)
    load = lever.load("a", keep_alive_s=keep_alive_s)
    paper.loaded("a")
    assert lever.ends == {load: "done"}
    view = paper.fleet.instance("a.gguf")
    if until is None:
        assert paper.stops == ["a.gguf"]
    else:
        assert view.state is State.READY
        assert view.keep_until == (None if until < 0 else until)


def test_a_load_without_keep_alive_never_shortens_the_time_to_live() -> None:
    """The idle time begins anew, and what was to be kept for longer is."""
    paper = Paper([spec("a", ttl_s=60.0)], limits())
    lever = Lever(paper)
    lever.load("a", keep_alive_s=1000.0)
    paper.loaded("a")
    paper.now = 10.0
    lever.load("a")
    assert paper.fleet.instance("a.gguf").keep_until == 1000.0
    lever.load("a", keep_alive_s=0.5)
    paper.now = 10.4
    lever.load("a")
    assert paper.fleet.instance("a.gguf").keep_until == 70.4


# --- unload ---


def test_an_idle_model_is_unloaded_at_once() -> None:
    """It is done when its memory is back."""
    paper, lever = house()
    paper.up("a")
    unload = lever.unload("a")
    assert lever.stage(unload).phase is Phase.STOPPING
    paper.stopped("a")
    assert lever.ends == {unload: "done"}
    assert paper.fleet.held == 0


def test_an_unload_of_what_is_not_loaded_is_done_at_once() -> None:
    """There is nothing to do."""
    _, lever = house()
    unload = lever.unload("a")
    assert lever.ends == {unload: "done"}


def test_an_unload_lets_streams_end_and_lets_nobody_in() -> None:
    """What runs goes on; who comes waits, and is served by the next load."""
    paper, lever = house()
    ticket = busy(paper, "a")
    paper.now += 1
    unload = lever.unload("a")
    late = paper.arrive("a")
    assert late not in paper.grants
    assert lever.stage(unload).phase is Phase.DRAINING
    assert paper.stops == []
    paper.feed(Released(ticket, served=True))
    assert paper.stops == ["a.gguf"]
    paper.stopped("a")
    assert lever.ends == {unload: "done"}
    paper.loaded("a")
    assert paper.grants == [ticket, late]
    assert paper.cuts == {}
    assert paper.refusals == {}


def test_an_unload_by_force_cuts_and_refuses() -> None:
    """What runs gets a legal last event, who waits a 503; the model stops when its slots are empty."""
    paper, lever = house()
    first, second = busy(paper, "a"), busy(paper, "a")
    waiting = [paper.arrive("a") for _ in range(3)]
    unload = lever.unload("a", force=True)
    cut = {effect.ticket: effect.reason.finish.value for effect in paper.of(Cut)}
    assert cut.items() >= {first: "shutdown", second: "shutdown"}.items()
    assert set(cut) | set(paper.refusals) == {first, second, *waiting}
    assert set(paper.refusals.values()) <= {"unloaded"}
    assert paper.stops == []
    for ticket in cut:
        paper.feed(Released(ticket, served=False))
    paper.stopped("a")
    assert lever.ends == {unload: "done"}
    assert paper.loads == ["a.gguf"]


def test_an_unload_aborts_a_load_that_nobody_waits_for() -> None:
    """The load's own operation is cancelled: the last wish counts."""
    paper, lever = house()
    load = lever.load("a")
    unload = lever.unload("a")
    assert paper.stops == ["a.gguf"]
    paper.stopped("a")
    assert lever.ends == {load: "cancelled", unload: "done"}
    assert paper.fleet.held == 0


def test_an_unload_leaves_the_load_to_who_waits_for_it() -> None:
    """The request is served first; then the model goes."""
    paper, lever = house()
    ticket = paper.arrive("a")
    unload = lever.unload("a")
    assert paper.stops == []
    paper.loaded("a")
    assert paper.grants == [ticket]
    paper.now += 1
    paper.serve(ticket)
    paper.stopped("a")
    assert lever.ends == {unload: "done"}


def test_an_unload_by_force_aborts_the_load_and_refuses_who_waits() -> None:
    """Also when room is still being made for it."""
    paper, lever = house()
    ticket = paper.arrive("a")
    lever.unload("a", force=True)
    assert paper.refusals == {ticket: "unloaded"}
    assert paper.stops == ["a.gguf"]


def test_a_pinned_model_is_not_unloaded() -> None:
    """A conflict, which says how to let it go."""
    paper, lever = house()
    paper.up("a")
    lever.pin("a")
    unload, forced = lever.unload("a"), lever.unload("a", force=True)
    assert lever.ends == {unload: "conflict", forced: "conflict"}
    lever.pin("a", pinned=False)
    lever.unload("a")
    assert paper.stops == ["a.gguf"]


def test_pinning_a_model_that_drains_for_an_unload_keeps_it() -> None:
    """The unload is cancelled, and the gate opens."""
    paper, lever = house()
    busy(paper, "a")
    paper.now += 1
    unload = lever.unload("a")
    late = paper.arrive("a")
    lever.pin("a")
    assert lever.ends == {unload: "cancelled"}
    assert late in paper.grants


def test_a_later_load_keeps_a_model_that_still_drains() -> None:
    """The unload is cancelled, the gate opens, and nothing is loaded twice."""
    paper, lever = house()
    busy(paper, "a")
    paper.now += 1
    unload = lever.unload("a")
    load = lever.load("a")
    assert lever.ends == {unload: "cancelled", load: "done"}
    assert paper.arrive("a") in paper.grants
    assert paper.loads == ["a.gguf"]


def test_a_later_load_of_a_model_that_stops_loads_it_again() -> None:
    """Both are done, one after the other."""
    paper, lever = house()
    paper.up("a")
    unload, load = lever.unload("a"), lever.load("a")
    assert lever.stage(load).phase is Phase.STOPPING
    paper.stopped("a")
    assert lever.ends == {unload: "done"}
    paper.loaded("a")
    assert lever.ends == {unload: "done", load: "done"}


def test_an_unload_withdraws_a_preload() -> None:
    """What was to be there before requests come is not loaded any more."""
    paper, lever = house(100)
    ticket = busy(paper, "b")
    paper.feed(Wanted("a.gguf"))
    unload = lever.unload("a")
    assert lever.ends == {unload: "done"}
    paper.feed(Released(ticket, served=True))
    assert paper.loads == ["b.gguf"]


def test_streams_are_cut_after_evict_timeout_where_that_is_allowed() -> None:
    """With `cut_streams` an unload takes no longer than a claim would; the scheduler wakes for it."""
    paper, lever = house(None, "a", cut_streams=True, evict_timeout_s=5.0)
    ticket = busy(paper, "a")
    paper.now += 1
    unload = lever.unload("a")
    due = next_deadline(paper.fleet, paper.now)
    assert due == 6.0
    paper.now = due
    paper.feed(Tick())
    assert paper.cuts == {ticket: "unloaded"}
    assert next_deadline(paper.fleet, paper.now) is None
    paper.feed(Released(ticket, served=False))
    paper.stopped("a")
    assert lever.ends == {unload: "done"}


def test_who_waited_for_the_load_has_evict_timeout_before_it_is_cut() -> None:
    """However long ago the unload was asked for: the model closes when it is ready."""
    paper, lever = house(None, "a", cut_streams=True, evict_timeout_s=5.0)
    ticket = paper.arrive("a")
    lever.unload("a")
    paper.now = 7.0
    paper.loaded("a")
    paper.feed(GotSlot(ticket))
    assert paper.cuts == {}
    assert next_deadline(paper.fleet, paper.now) == 12.0
    paper.now = 12.0
    paper.feed(Tick())
    assert paper.cuts == {ticket: "unloaded"}


def test_an_engine_that_hangs_fails_its_unload() -> None:
    """Its memory does not come back, and a new unload is refused with the reason."""
    paper, lever = house()
    busy(paper, "a")
    paper.now += 1
    unload = lever.unload("a")
    paper.feed(Stuck("a.gguf", DEAD))
    again = lever.unload("a")
    assert lever.ends == {unload: "failed", again: "model_failed"}


# --- switch ---


def test_a_switch_loads_first_and_then_unloads_the_others() -> None:
    """Where both fit, nothing goes before the new one is ready; pinned ones stay."""
    paper, lever = house(None, "a", "b", "c")
    paper.up("a", "b")
    lever.pin("b")
    switch = lever.switch("c")
    assert paper.stops == []
    paper.loaded("c")
    assert paper.stops == ["a.gguf"]
    paper.stopped("a")
    assert lever.ends == {switch: "done"}
    assert lever.end_of(switch).operation.evicted == ("a.gguf",)
    assert [paper.state(name) for name in "abc"] == [State.STOPPED, State.READY, State.READY]


def test_a_switch_to_a_model_that_does_not_fit_beside_the_other_makes_room_first() -> None:
    """The idle one goes at once; a busy one is asked at once, and its stream ends in peace."""
    paper, lever = house(100)
    ticket = busy(paper, "a")
    paper.now += 10
    switch = lever.switch("b")
    assert lever.stage(switch).phase is Phase.DRAINING
    paper.feed(Released(ticket, served=True))
    assert paper.stops == ["a.gguf"]
    paper.stopped("a")
    paper.loaded("b")
    assert lever.ends == {switch: "done"}
    assert lever.end_of(switch).operation.evicted == ("a.gguf",)


def test_a_switch_whose_load_fails_brings_back_what_went_for_it() -> None:
    """Never are both gone: what was loaded before is loaded again."""
    paper, lever = house(100)
    paper.up("a")
    switch = lever.switch("b")
    paper.stopped("a")
    paper.feed(LoadFailed("b.gguf", BAD))
    assert lever.ends == {switch: "failed"}
    assert paper.loads == ["a.gguf", "b.gguf", "a.gguf"]
    paper.loaded("a")
    assert paper.state("a") is State.READY


def test_a_switch_to_what_is_ready_unloads_the_others_at_once() -> None:
    """Busy ones take nobody new, and go when their streams have ended."""
    paper, lever = house()
    paper.up("a", "c")
    ticket = busy(paper, "b")
    paper.now += 1
    switch = lever.switch("a")
    assert paper.stops == ["c.gguf"]
    paper.stopped("c")
    assert lever.stage(switch).phase is Phase.DRAINING
    assert lever.stage(switch).progress == 0.5
    late = paper.arrive("b")
    assert late not in paper.grants
    paper.feed(Released(ticket, served=True))
    paper.stopped("b")
    assert lever.ends == {switch: "done"}


def test_a_load_that_was_asked_for_after_a_switch_stays() -> None:
    """The switch unloads what was there before, not what somebody wants since."""
    paper, lever = house()
    busy(paper, "a")
    paper.now += 1
    switch, load = lever.switch("b"), lever.load("a")
    paper.loaded("b")
    assert lever.ends[load] == "done"
    later = lever.load("a")
    assert lever.ends == {switch: "done", load: "done", later: "done"}
    assert paper.state("a") is State.READY


def test_a_later_switch_wins() -> None:
    """The first one is cancelled; its model goes when the second one is ready."""
    paper, lever = house()
    first = lever.switch("a")
    second = lever.switch("b")
    assert lever.ends == {first: "cancelled"}
    paper.loaded("b")
    assert paper.stops == ["a.gguf"]
    paper.stopped("a")
    assert lever.ends == {first: "cancelled", second: "done"}


# --- giving up, limits, the end ---


def test_giving_up_a_load_ends_it_only_if_nobody_else_waits() -> None:
    """A request keeps the load that an operator began."""
    paper, lever = house()
    alone, shared = lever.load("a"), lever.load("b")
    ticket = paper.arrive("b")
    lever.give_up(alone)
    lever.give_up(shared)
    assert paper.stops == ["a.gguf"]
    assert lever.ends == {alone: "cancelled", shared: "cancelled"}
    paper.loaded("b")
    assert paper.grants == [ticket]


def test_giving_up_an_unload_opens_the_gate() -> None:
    """As long as the model was not told to stop."""
    paper, lever = house()
    busy(paper, "a")
    paper.now += 1
    unload = lever.unload("a")
    late = paper.arrive("a")
    lever.give_up(unload)
    assert late in paper.grants
    assert lever.ends == {unload: "cancelled"}


def test_giving_up_what_is_not_known_changes_nothing() -> None:
    """It may have ended a moment ago."""
    paper, lever = house()
    before = paper.fleet
    lever.give_up("op7")
    assert paper.fleet == before


def test_only_so_many_operations_run_at_a_time() -> None:
    """More are refused with 429; one that ends makes a place."""
    paper, lever = house()
    first, *_ = [lever.load("a") for _ in range(MOST_RUNNING)]
    refused = lever.load("b")
    assert lever.ends == {refused: "queue_full"}
    lever.give_up(first)
    assert lever.load("b") not in lever.ends
    assert paper.loads == ["a.gguf", "b.gguf"]


def test_a_shutdown_ends_all_operations() -> None:
    """Those that run are cancelled with the reason, later ones are refused."""
    paper, lever = house()
    load = lever.load("a")
    paper.feed(Drain())
    later = lever.load("b")
    assert lever.ends == {load: "cancelled", later: "draining"}
    [end] = paper.of(EndOperation)
    assert end.problem is not None
    assert end.problem.status == 503


def test_a_pin_outlives_a_new_look_at_the_folder() -> None:
    """And it holds whatever the config says."""
    paper, lever = house(200)
    paper.up("a", "b")
    lever.pin("a")
    paper.feed(CatalogChanged(make_catalog([spec("a"), spec("b"), spec("c")])))
    lever.load("c")
    assert paper.stops == ["b.gguf"]
    assert paper.told.count("pin") == 1


def test_a_load_can_pin_its_model() -> None:
    """It is pinned when it is asked for, so nothing can come between."""
    paper, lever = house(100)
    lever.load("a", pin=True)
    paper.loaded("a")
    refused = lever.load("b")
    assert lever.ends[refused] == "does_not_fit"
