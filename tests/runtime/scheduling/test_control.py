# SPDX-License-Identifier: GPL-3.0-only
"""Operations over real instances with the fake engine, under a mock clock."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace
from support.scheduler_driver import limits, spec
from support.scheduler_harness import SchedulerHarness, last, read, running_scheduler, text_of

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, ModelFacts, catalog_of
from modeld.domain.operation import OperationState, OperationStatus, Phase
from modeld.domain.request_events import Failed, Finished, FinishReason, Started
from modeld.engine.llama.footprint import estimate
from modeld.errors import (
    Conflict,
    DoesNotFit,
    Draining,
    ModeldError,
    ModelFailed,
    ModelNotFound,
    OperationNotFound,
)
from modeld.runtime.scheduling.control import resized
from modeld.runtime.scheduling.operations import KEPT
from modeld.runtime.ticket import Ticket

SPECS = [spec("a"), spec("b"), spec("c", 300)]
SLOW = dict.fromkeys(("a.gguf", "b.gguf", "c.gguf"), "load_s=10 step_s=0.1")


async def done(here: SchedulerHarness, status: OperationStatus, seconds: float = 1000.0) -> OperationStatus:
    """Wait for an operation; it must have ended."""
    status = await here.control.wait(status.id, seconds)
    assert status.state is not OperationState.RUNNING
    return status


async def begun(ticket: Ticket) -> None:
    """Wait until a stream has its first token."""
    while not any(isinstance(event, Started) for event in await ticket.next()):
        pass


async def test_a_load_tells_how_far_it_is(autojump_clock: trio.testing.MockClock) -> None:
    """Half-way through ten seconds it is at half; in the end it is done, with the time it took."""
    async with running_scheduler(SPECS, limits(), SLOW) as here:
        load = here.control.load("a")
        assert (load.state, load.phase, load.progress) == (OperationState.RUNNING, Phase.LOADING, 0.0)
        status = await here.control.wait(load.id, 5.05)
        assert status.state is OperationState.RUNNING
        assert status.progress == pytest.approx(0.5)
        assert "5.0 s" in status.reason
        status = await done(here, load)
        assert (status.state, status.progress, status.error) == (OperationState.DONE, 1.0, None)
        assert status.ended_unix is not None
        assert here.scheduler.model_states()["a.gguf"] is InstanceState.READY


async def test_a_waiter_that_is_cancelled_leaves_the_operation_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Others wait for it, too, and it ends as ever."""
    async with running_scheduler(SPECS, limits(), SLOW) as here:
        load = here.control.load("a")
        with trio.move_on_after(1) as scope:
            await here.control.wait(load.id, 100)
        assert scope.cancelled_caught
        assert (await done(here, load)).state is OperationState.DONE


async def test_streams_end_in_peace_when_their_model_is_unloaded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The one that runs has all of its text; the one that comes meanwhile is served by the next load."""
    async with running_scheduler(SPECS, limits(), SLOW) as here:
        running = here.ask("a", "one two three", max_tokens=30)
        await begun(running)
        await trio.sleep(1)
        unload = here.control.unload("a")
        assert unload.phase is Phase.DRAINING
        late = here.ask("a")
        finished = await last(running)
        assert isinstance(finished, Finished)
        assert finished.usage.completion_tokens == 30
        assert (await done(here, unload)).state is OperationState.DONE
        assert isinstance(await last(late), Finished)
        assert here.events.count(("load", "a.gguf")) == 2


async def test_force_cuts_streams_with_a_legal_end_and_refuses_who_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """`shutdown` with the text so far; 503 `unloaded` for those without a token."""
    async with running_scheduler(SPECS, limits(), SLOW) as here:
        running = [here.ask("a", "one two three", max_tokens=1000) for _ in range(2)]
        for ticket in running:
            await begun(ticket)
        waiting = [here.ask("a") for _ in range(5)]
        await trio.sleep(1)
        unload = here.control.unload("a", force=True)
        for ticket in running:
            events = await read(ticket)
            assert isinstance(events[-1], Finished)
            assert events[-1].reason is FinishReason.SHUTDOWN
            assert text_of(events)
        for ticket in waiting:
            end = await last(ticket)
            assert isinstance(end, Failed)
            assert (end.problem.kind, end.problem.status) == ("unloaded", 503)
        assert (await done(here, unload)).state is OperationState.DONE
        assert here.scheduler.fleet.held == 0
        assert not here.scheduler.instances


async def test_a_load_that_is_given_up_is_aborted(autojump_clock: trio.testing.MockClock) -> None:
    """Its memory is back long before it would have been ready."""
    async with running_scheduler(SPECS, limits(), SLOW) as here:
        load = here.control.load("a")
        await trio.sleep(1)
        assert here.control.cancel(load.id).state is OperationState.CANCELLED
        assert here.control.cancel(load.id).state is OperationState.CANCELLED
        await trio.sleep(1)
        assert here.scheduler.fleet.held == 0


async def test_a_switch_changes_the_model_within_the_budget(autojump_clock: trio.testing.MockClock) -> None:
    """Both do not fit: the first goes, the second comes; a client of the first is served afterwards."""
    async with running_scheduler(SPECS, limits(100), SLOW) as here:
        await done(here, here.control.load("a"))
        status = await done(here, here.control.switch("b"))
        assert (status.state, status.evicted) == (OperationState.DONE, ("a.gguf",))
        assert here.scheduler.model_states() == {
            "a.gguf": InstanceState.STOPPED,
            "b.gguf": InstanceState.READY,
            "c.gguf": InstanceState.STOPPED,
        }


async def test_a_switch_to_a_bad_file_brings_the_old_model_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The file is only found to be bad when room was made for it."""
    async with running_scheduler(SPECS, limits(100), SLOW | {"b.gguf": "fail_load=bad_file"}) as here:
        await done(here, here.control.load("a"))
        status = await done(here, here.control.switch("b"))
        assert (status.state, status.code) == (OperationState.FAILED, 503)
        assert "bad file" in (status.error or "")
        await trio.sleep(20)
        assert here.scheduler.model_states()["a.gguf"] is InstanceState.READY


async def test_a_file_that_vanishes_while_loading_ends_the_load(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """404 for the operation and for a request; the daemon has its memory back."""
    async with running_scheduler(SPECS, limits(), SLOW) as here:
        load, ticket = here.control.load("a"), here.ask("a")
        await trio.sleep(1)
        here.scheduler.set_catalog(catalog_of(SPECS[1:]))
        status = await done(here, load)
        assert (status.state, status.code) == (OperationState.FAILED, 404)
        end = await last(ticket)
        assert isinstance(end, Failed)
        assert end.problem.status == 404
        await trio.sleep(1)
        assert here.scheduler.fleet.held == 0


async def test_series_of_models_that_are_gone_go_with_them(autojump_clock: trio.testing.MockClock) -> None:
    """With the next look at the folder after their memory was given back."""
    async with running_scheduler(SPECS, limits(), SLOW) as here:
        await done(here, here.control.load("a"))
        assert b'modeld_loads_total{model="a.gguf"' in here.metrics.expose("")[0]
        here.scheduler.set_catalog(catalog_of(SPECS[1:]))
        assert b'modeld_loads_total{model="a.gguf"' in here.metrics.expose("")[0]
        await trio.sleep(10)
        here.scheduler.set_catalog(catalog_of(SPECS[1:]))
        assert b"a.gguf" not in here.metrics.expose("")[0]


async def test_refusals_come_at_once_and_leave_no_operation(autojump_clock: trio.testing.MockClock) -> None:
    """Unknown, damaged, too large, pinned, going down: an error, and nothing in the list."""
    specs = [*SPECS, spec("d", error="it is no GGUF file")]
    async with running_scheduler(specs, limits(200), SLOW) as here:
        control = here.control
        control.pin("a", pinned=True)
        for ask, error in (
            (lambda: control.load("nobody"), ModelNotFound),
            (lambda: control.switch("nobody"), ModelNotFound),
            (lambda: control.pin("nobody", pinned=True), ModelNotFound),
            (lambda: control.plan("nobody"), ModelNotFound),
            (lambda: control.load("d"), ModelFailed),
            (lambda: control.switch("c"), DoesNotFit),
            (lambda: control.unload("a"), Conflict),
            (lambda: control.operation("x"), OperationNotFound),
            (lambda: control.cancel("x"), OperationNotFound),
        ):
            with pytest.raises(error):
                ask()
        assert control.operations() == ()
        here.scheduler.drain()
        with pytest.raises(Draining):
            control.load("b")
        with pytest.raises(OperationNotFound):
            await control.wait("x", 1)


async def test_aliases_name_the_same_model_everywhere(autojump_clock: trio.testing.MockClock) -> None:
    """Two models claim one alias: it is the first one's, for operators as for clients."""
    specs = [spec(name) for name in "ab"]
    specs = [type(it)(**{**vars_of(it), "aliases": (*it.aliases, "chat")}) for it in specs]
    async with running_scheduler(specs, limits(), SLOW) as here:
        assert here.control.load("chat").model == here.control.load("a").model == "a.gguf"
        assert here.control.plan("chat").model == "a.gguf"
        assert here.control.pin("chat", pinned=True).id == "a.gguf"
        assert here.ask("chat").model.id == "a.gguf"


def vars_of(model: object) -> dict[str, object]:
    return {name: getattr(model, name) for name in model.__struct_fields__}


async def test_the_book_keeps_the_latest_operations(autojump_clock: trio.testing.MockClock) -> None:
    """Hundreds may end; the oldest are forgotten, those that run never."""
    async with running_scheduler(SPECS, limits(), SLOW) as here:
        await done(here, here.control.load("a"))
        running = here.control.load("b")
        first = here.control.load("a")
        for _ in range(3 * KEPT):
            here.control.load("a")
        latest = here.control.operations()
        assert len(latest) == KEPT
        assert latest[-1].id == running.id
        assert latest[-1].state is OperationState.RUNNING
        with pytest.raises(OperationNotFound):
            here.control.operation(first.id)
        assert here.control.operation(running.id).state is OperationState.RUNNING


@pytest.mark.parametrize("keep_alive_s", [0.0, 5.0])
async def test_keep_alive_of_a_request_holds_from_its_end(
    keep_alive_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    """0: the model goes at once, as soon as nobody holds it."""
    async with running_scheduler([spec("a", ttl_s=60.0)], limits(), {"a.gguf": "load_s=1"}) as here:
        await last(here.ask("a", keep_alive_s=keep_alive_s))
        began = trio.current_time()
        while here.scheduler.fleet.held:
            await trio.sleep(0.1)
        assert trio.current_time() - began == pytest.approx(keep_alive_s, abs=0.5)


@pytest.mark.parametrize("keep_alive_s", [-1.0, -1e-9, 365 * 86400.0, 100 * 365 * 86400.0])
async def test_a_very_long_keep_alive_is_kept_to_the_second(
    keep_alive_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Negative: no time at all ends it. A year: a year, and the scheduler sleeps and wakes as ever."""
    async with running_scheduler([spec("a", ttl_s=60.0)], limits(), {"a.gguf": "load_s=1"}) as here:
        await last(here.ask("a", keep_alive_s=keep_alive_s))
        until = trio.current_time() + keep_alive_s
        await trio.sleep(100)
        view = here.scheduler.fleet.instance("a.gguf")
        assert view.state is InstanceState.READY
        assert view.keep_until == (None if keep_alive_s < 0 else pytest.approx(until))


async def test_twenty_operators_at_once_end_all_of_their_operations(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """They load and unload one model at the same instant, and the last wish counts."""
    async with running_scheduler(SPECS, limits(100), SLOW) as here:
        asked = [here.control.unload("a") if number % 2 else here.control.load("a") for number in range(20)]
        ended = [await done(here, status) for status in asked]
        states = [status.state for status in ended]
        assert states[-1] is OperationState.DONE
        assert states[:-1:2] == [OperationState.CANCELLED] * 10
        assert here.scheduler.fleet.held == 0
        ended = await done(here, here.control.load("a"))
        assert ended.state is OperationState.DONE


async def test_a_shutdown_wakes_who_waits_for_an_operation(autojump_clock: trio.testing.MockClock) -> None:
    """Who waits for hours holds up no stop: the operation is cancelled with the reason, at once."""
    async with running_scheduler(SPECS, limits(), SLOW) as here:
        load = here.control.load("a")
        ended: list[OperationStatus] = []

        async def wait() -> None:
            ended.append(await here.control.wait(load.id, 3600))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(1)
            here.scheduler.drain()
        assert trio.current_time() == pytest.approx(1)
        assert (ended[0].state, ended[0].code) == (OperationState.CANCELLED, 503)


async def test_operations_are_counted_by_how_they_ended(autojump_clock: trio.testing.MockClock) -> None:
    """Refused ones are none."""
    async with running_scheduler(SPECS, limits(200), SLOW | {"b.gguf": "fail_load=bad_file"}) as here:
        for status in (here.control.load("a"), here.control.load("b"), here.control.unload("a")):
            await done(here, status)
        with pytest.raises(DoesNotFit):
            here.control.load("c")
        sample = here.observer._metrics.registry.get_sample_value
        for kind, outcome, count in (
            ("load", "cancelled", 1),
            ("load", "failed", 1),
            ("unload", "done", 1),
            ("load", "done", None),
        ):
            labels = {"kind": kind, "outcome": outcome}
            assert sample("modeld_operations_total", labels) == count


async def test_a_plan_of_another_size_has_another_footprint() -> None:
    """More cells take more, on top of what is known of the present size; without facts it stays."""
    model = spec("a")
    assert resized(model, context=99, slots=None).footprint == model.footprint
    facts = ModelFacts(
        architecture="llama",
        context_length=4096,
        layers=4,
        heads=4,
        kv_heads=(4,) * 4,
        key_length=64,
        value_length=64,
        embedding_length=256,
        weights_bytes=10 * MIB,
    )
    known = replace(model, facts=facts, footprint=estimate(facts, model.options).scaled(1.5))
    assert resized(known, context=None, slots=None) is known
    larger = resized(known, context=16384, slots=8)
    assert (larger.options.ctx, larger.options.slots) == (16384, 8)
    assert larger.footprint.kv > known.footprint.kv
    assert larger.footprint.weights == known.footprint.weights
    grown = estimate(facts, larger.options).total - estimate(facts, known.options).total
    assert larger.footprint.total - known.footprint.total == grown
    async with running_scheduler(SPECS, limits()) as here:
        with pytest.raises(ModeldError):
            here.control.plan("nobody", context=1)
        here.scheduler.set_catalog(catalog_of(SPECS))
        assert here.control.plan(None).model == "a.gguf"
