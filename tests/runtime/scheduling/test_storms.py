# SPDX-License-Identifier: GPL-3.0-only
"""Storms of clients over the whole runtime, with the fake engine under a mock clock.

Each storm is drawn by hypothesis: who comes when, for which model, for how long, and who leaves again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scheduler_driver import limits, spec
from support.scheduler_harness import SchedulerHarness, read, running_scheduler, text_of

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB
from modeld.domain.operation import OperationState, OperationStatus
from modeld.domain.request import Priority
from modeld.domain.request_events import Event, Failed, Finished
from modeld.errors import ModeldError
from modeld.scheduler.state import SchedulerLimits

SIZES = {"a": 30, "b": 45, "c": 60, "d": 90}
BUDGET_MB = 100
STEP_S = 0.05
LOAD_S = 1.0
SLOTS = 2
LONGEST = 40
"""Tokens of the longest answer."""


class Client(msgspec.Struct, frozen=True):
    """One client of a storm. Times in seconds."""

    at: float
    model: str
    tokens: int
    priority: Priority = Priority.NORMAL
    leaves_after: float | None = None


class Wish(msgspec.Struct, frozen=True):
    """What one operator of a storm asks for, and after how long that is given up. Times in seconds."""

    at: float
    model: str
    kind: str
    given_up_after: float | None = None


times = st.integers(0, 80).map(lambda tenth: tenth / 10)
clients = st.builds(
    Client,
    at=times,
    model=st.sampled_from(sorted(SIZES)),
    tokens=st.integers(1, LONGEST),
    priority=st.sampled_from(list(Priority)),
    leaves_after=st.one_of(st.none(), st.none(), times),
)
storms = st.lists(clients, min_size=2, max_size=25)
wishes = st.lists(
    st.builds(
        Wish,
        at=times,
        model=st.sampled_from(sorted(SIZES)),
        kind=st.sampled_from(["load", "unload", "force", "switch", "pin", "unpin", "briefly"]),
        given_up_after=st.one_of(st.none(), st.none(), times),
    ),
    min_size=1,
    max_size=20,
)


def watched(here: SchedulerHarness) -> None:
    """Hold the ledger's inequality against the instances that really are, at every step."""
    scheduler = here.scheduler
    decider = scheduler._loop
    take = decider._take

    def take_and_check(event: object) -> None:
        take(event)
        fleet = scheduler.fleet
        assert fleet.held <= BUDGET_MB * MIB
        there = sum(SIZES[model[0]] for model in scheduler.instances) * MIB
        assert there <= fleet.held, "an instance that is there is in the ledger"

    decider._take = take_and_check


async def visit(here: SchedulerHarness, client: Client, got: dict[Client, list[Event]]) -> None:
    await trio.sleep(client.at)
    prompt = f"from {client.at} {client.tokens}"
    try:
        ticket = here.ask(client.model, prompt, max_tokens=client.tokens, priority=client.priority)
    except ModeldError as error:  # Refused at once: that is its last event.
        if client.leaves_after is None:
            got[client] = [Failed(error.as_problem())]
        return
    if client.leaves_after is None:
        got[client] = await read(ticket)
        return
    with trio.move_on_after(client.leaves_after):
        await read(ticket)
    ticket.close()


async def pull(here: SchedulerHarness, wish: Wish, ended: list[OperationStatus]) -> None:
    """Ask for something, wait until it has ended, and note how."""
    await trio.sleep(wish.at)
    control = here.control
    try:
        match wish.kind:
            case "pin" | "unpin":
                control.pin(wish.model, pinned=wish.kind == "pin")
                return
            case "switch":
                status = control.switch(wish.model)
            case "load" | "briefly":
                keep = 0.0 if wish.kind == "briefly" else None
                status = control.load(wish.model, keep_alive_s=keep)
            case _:
                status = control.unload(wish.model, force=wish.kind == "force")
    except ModeldError:
        return
    if wish.given_up_after is not None:
        await control.wait(status.id, wish.given_up_after)
        control.cancel(status.id)
    ended.append(await control.wait(status.id, 3000))


def play(
    storm: list[Client], terms: SchedulerLimits, scripts: dict[str, str], asked: Sequence[Wish] = ()
) -> dict[Client, list[Event]]:
    """Run a storm to its end in virtual time; return what those who stayed have got."""
    got: dict[Client, list[Event]] = {}
    ended: list[OperationStatus] = []

    async def main() -> None:
        specs = [spec(name, mb, slots=SLOTS, max_queue_depth=100) for name, mb in SIZES.items()]
        async with running_scheduler(specs, terms, dict(scripts)) as here:
            watched(here)
            with trio.fail_after(3600):
                async with trio.open_nursery() as nursery:
                    for client in storm:
                        nursery.start_soon(visit, here, client, got)
                    for wish in asked:
                        nursery.start_soon(pull, here, wish, ended)
                assert all(status.state is not OperationState.RUNNING for status in ended)
                assert here.scheduler.fleet.operations == ()
                await here.scheduler.inside.wait_value(0)
            await trio.sleep(120)
            assert all(view.idle for view in here.scheduler.fleet.instances.values())
            assert here.scheduler.fleet.reservations == ()
            states = set(here.scheduler.model_states().values())
            assert states <= {InstanceState.READY, InstanceState.STOPPED, InstanceState.ERROR}

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return got


def calm() -> dict[str, str]:
    return {f"{name}.gguf": f"load_s={LOAD_S} step_s={STEP_S}" for name in SIZES}


def longest_wait_s(storm: list[Client], terms: SchedulerLimits) -> float:
    """The formula of docs/scheduling.md; whoever is in the storm counts as older."""
    service = (LONGEST + 2) * STEP_S
    served = terms.quantum_s + terms.backlog_time_s
    turn = served + 2 * service + LOAD_S + 0.5
    per_turn = 2 * SLOTS + SLOTS * math.floor(served / service)
    turns = sum(math.ceil(sum(one.model == name for one in storm) / per_turn) for name in SIZES)
    return terms.max_wait_before_drain_s + (1 + turns) * turn + service


PATIENT = limits(BUDGET_MB, max_wait_s=1e6, backlog_time_s=2.0)


@given(storms)
@settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_whoever_stays_is_served_within_the_bound(storm: list[Client]) -> None:
    """No refusal, no deadlock; each stream has its one last event and all of its tokens, in time."""
    storm = list(dict.fromkeys(storm))
    got = play(storm, PATIENT, calm())
    bound = longest_wait_s(storm, PATIENT)
    assert set(got) == {client for client in storm if client.leaves_after is None}
    for client, events in got.items():
        ends = [event for event in events if isinstance(event, Finished | Failed)]
        assert len(ends) == 1
        assert isinstance(ends[0], Finished)
        assert ends[0].usage.completion_tokens == client.tokens
        assert ends[0].stats.queue_s <= bound


@given(storms)
@settings(max_examples=40, deadline=None)
@pytest.mark.slow
def test_clients_that_leave_change_nothing_for_the_others(storm: list[Client]) -> None:
    """With and without those who leave, everybody else gets the same text and the same end."""
    storm = list(dict.fromkeys(storm))
    staying = [client for client in storm if client.leaves_after is None]
    with_them, alone = play(storm, PATIENT, calm()), play(staying, PATIENT, calm())
    for client in staying:
        for got in (with_them, alone):
            assert isinstance(got[client][-1], Finished)
        assert text_of(with_them[client]) == text_of(alone[client])


faults = st.fixed_dictionaries(
    {
        f"{name}.gguf": st.sampled_from(
            ["", "fail_load=bad_file", "die_at=3", "die_at=30", "load_s=7", "prefill_s=0.5 chunk=1"]
        )
        for name in SIZES
    }
)


@given(storms, faults, st.sampled_from([3.0, 30.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_with_faults_everybody_still_gets_one_last_event(
    storm: list[Client], scripts: dict[str, str], max_wait: float, cut: bool
) -> None:
    """Loads fail, engines die, waits are too long, streams are cut: the ledger holds, and all end once."""
    storm = list(dict.fromkeys(storm))
    terms = limits(BUDGET_MB, max_wait_s=max_wait, backlog_time_s=1.0, cut_streams=cut, evict_timeout_s=1.0)
    scripts = {model: f"step_s={STEP_S} {script}" for model, script in scripts.items()}

    got = play(storm, terms, scripts)
    assert set(got) == {client for client in storm if client.leaves_after is None}
    for events in got.values():
        assert sum(isinstance(event, Finished | Failed) for event in events) == 1


@given(storms, wishes, faults, st.booleans())
@settings(max_examples=40, deadline=None)
def test_operators_in_between_leave_nobody_without_an_end(
    storm: list[Client], asked: list[Wish], scripts: dict[str, str], cut: bool
) -> None:
    """Up to 20 load, unload, switch and pin: each operation and each client ends once, within the budget."""
    storm = list(dict.fromkeys(storm))
    terms = limits(BUDGET_MB, max_wait_s=30.0, backlog_time_s=1.0, cut_streams=cut, evict_timeout_s=1.0)
    scripts = {model: f"step_s={STEP_S} {script}" for model, script in scripts.items()}
    got = play(storm, terms, scripts, asked)
    assert set(got) == {client for client in storm if client.leaves_after is None}
    for events in got.values():
        assert sum(isinstance(event, Finished | Failed) for event in events) == 1
