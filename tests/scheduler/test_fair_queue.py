# SPDX-License-Identifier: GPL-3.0-only
"""Fair shares on driver: turns by tokens, debts, weights, and who gives way in a full queue."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.request import (
    AS_MANY_AS_FIT,
    DetokenizeRequest,
    EmbedRequest,
    GenerateRequest,
    Message,
    Priority,
    Tenant,
    TokenizeRequest,
)
from modeld.scheduler.admission import token_estimate
from modeld.scheduler.effects import Refuse
from modeld.scheduler.fair_queue import fair_turns, quantum, settle_shares
from modeld.scheduler.inputs import RequestLeft, SlotReleased, SlotTaken
from modeld.scheduler.queue_order import queue_order
from modeld.scheduler.state import Fleet, InstanceView, PendingRequest, SchedulerLimits, Shares

QUANTUM = SchedulerLimits().share_tokens
DEEP = {"max_queue_depth": 2000, "max_queue_total": 5000, "max_wait_s": 1e6}


def tenant(owner: str, tokens: int = 500, weight: float = 1.0) -> Tenant:
    return Tenant(owner=owner, tokens=tokens, weight=weight)


def crowd(slots: int = 2, **more: object) -> SchedulerDriver:
    """A model that is loaded, with a deep queue."""
    driver = SchedulerDriver([spec("a", slots=slots)], limits(**{**DEEP, **more}))
    driver.up("a")
    return driver


class Service:
    """Serves who was granted, one after the other, in the order of the grants."""

    def __init__(self, driver: SchedulerDriver) -> None:
        self.driver = driver
        self.tenants: dict[int, Tenant] = {}
        self.served = len(driver.grants)

    def ask(self, its: Tenant, **more: object) -> int:
        ticket = self.driver.arrive("a", tenant=its, **more)
        self.tenants[ticket] = its
        return ticket

    def one(self) -> int:
        """Let the next one have its slot and end; return its ticket."""
        ticket = self.driver.grants[self.served]
        self.served += 1
        self.driver.feed(SlotTaken(ticket))
        self.driver.feed(SlotReleased(ticket, served=True, tokens=self.tenants[ticket].tokens))
        return ticket


@pytest.mark.parametrize("theirs", [1, 100, 700, 5000])
@pytest.mark.parametrize("own", [1, 100_000])
@pytest.mark.parametrize("slots", [1, 4])
def test_hundreds_of_requests_delay_another_key_by_a_quantum_at_most(
    theirs: int, own: int, slots: int
) -> None:
    """Between its coming and its slot, no more than a quantum of the other's tokens gets slots.

    The last request of a quantum is taken whole, and those that had slots before keep them.
    """
    driver = crowd(slots)
    service = Service(driver)
    flood = [service.ask(tenant("flood", theirs)) for _ in range(80)]
    running = set(driver.grants[service.served : service.served + slots])
    single = service.ask(tenant("single", own))
    before: list[int] = []
    while (ticket := service.one()) != single:
        before.append(ticket)
    passed = [ticket for ticket in before if ticket not in running]
    assert set(before) <= set(flood)
    assert sum(theirs for _ in passed) < QUANTUM + theirs


def test_weights_divide_the_tokens() -> None:
    """Of two who always wait, the one with thrice the weight gets thrice the tokens, at any size."""
    driver = crowd()
    service = Service(driver)
    for _ in range(200):
        service.ask(tenant("one", 300))
        service.ask(tenant("three", 900, weight=3))
    tokens = Counter[str]()
    for _ in range(100):
        its = service.tenants[service.one()]
        tokens[its.owner] += its.tokens
    assert tokens["three"] / tokens["one"] == pytest.approx(3, rel=0.15)


def test_high_requests_get_a_larger_share_and_low_ones_starve_nobody_nor_themselves() -> None:
    """4 to 1 to 1/4, and within one owner's line the classes go first to last."""
    driver = crowd()
    service = Service(driver)
    for _ in range(150):
        for name in Priority:
            service.ask(tenant(name, 200), priority=name)
    tokens = Counter(service.tenants[service.one()].owner for _ in range(200))
    assert tokens["high"] / tokens["normal"] == pytest.approx(4, rel=0.2)
    assert tokens["normal"] / tokens["low"] == pytest.approx(4, rel=0.3)


def test_one_owners_requests_are_taken_by_class_and_age_as_ever() -> None:
    """Turns decide between owners only."""
    driver = crowd(slots=1)
    service = Service(driver)
    for owner in "xy":
        for _ in range(2):
            service.ask(tenant(owner, QUANTUM))
    usual = service.ask(tenant("x", QUANTUM))
    late = service.ask(tenant("x", QUANTUM), priority=Priority.HIGH)
    order = queue_order(driver.fleet, "a.gguf", driver.now)
    assert order.index(late) < order.index(usual)


def test_who_asks_one_by_one_gets_no_more_than_his_share() -> None:
    """A client whose single requests each cost ten quanta waits for the other's turns in between."""
    driver = crowd(slots=1)
    service = Service(driver)
    for _ in range(220):
        service.ask(tenant("many", 512))
    tokens = Counter[str]()
    huge = service.ask(tenant("huge", 10 * QUANTUM))
    while tokens["huge"] < 4 * 10 * QUANTUM:
        ticket = service.one()
        tokens[service.tenants[ticket].owner] += service.tenants[ticket].tokens
        if ticket == huge:
            huge = service.ask(tenant("huge", 10 * QUANTUM))
    assert abs(tokens["huge"] - tokens["many"]) <= 11 * QUANTUM, "one request and one turn apart"


def test_what_cost_less_than_estimated_pays_debts() -> None:
    """Estimates count every token that an answer may have; what it had not is given back, as no credit."""
    shares = Shares(order=("a", "b"), credit={"a": -3000.0, "b": 100.0}, begun=False)
    assert settle_shares(shares, tenant("a", 5000), 4000).credit["a"] == -2000
    assert settle_shares(shares, tenant("a", 5000), 10).credit["a"] == 0
    assert settle_shares(shares, tenant("b", 500), 100).credit["b"] == 100
    assert settle_shares(shares, tenant("b", 500), 700).credit["b"] == -100
    assert settle_shares(shares, tenant("stranger"), 0) == shares
    assert settle_shares(shares, tenant("a"), None) == shares


def test_one_owner_alone_keeps_the_slots_full_and_has_a_quantum_in_front() -> None:
    """Slots are filled at once, whatever requests cost; what waits in front of them is a quantum, or one."""
    driver = crowd(slots=4)
    service = Service(driver)
    for _ in range(20):
        service.ask(tenant("big", 10 * QUANTUM))
    assert len(driver.grants) - service.served == 5
    nobody = crowd(slots=4)
    for _ in range(20):
        nobody.arrive("a")
    assert len(nobody.grants) - 1 == 8, "without keys a whole round waits there"


def test_turns_are_forgotten_when_nobody_waits() -> None:
    """An idle model begins again."""
    driver = crowd(slots=1)
    service = Service(driver)
    for owner in "ab" * 3:
        service.ask(tenant(owner, 5000))
    while service.served < len(driver.grants):
        service.one()
    assert driver.fleet.instance("a.gguf").shares == Shares()


def _plainly(fleet: Fleet, waiters: list[PendingRequest]) -> list[int]:
    """Surplus round robin by the book: a round at a time."""
    lines: dict[str, list[PendingRequest]] = {}
    for waiter in waiters:
        lines.setdefault(waiter.tenant.owner, []).append(waiter)
    credit = dict.fromkeys(lines, 0.0)
    taken: list[int] = []
    while any(lines.values()):
        for owner in list(credit):
            credit[owner] = min(0.0, credit[owner])
            if not lines[owner]:
                continue
            credit[owner] += quantum(fleet, lines[owner][0])
            while credit[owner] > 0 and lines[owner]:
                waiter = lines[owner].pop(0)
                credit[owner] -= waiter.tenant.tokens
                taken.append(waiter.ticket)
    return taken


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(1, 30_000), st.sampled_from(list(Priority))),
        min_size=1,
        max_size=40,
    ),
    st.fixed_dictionaries({owner: st.sampled_from([0.5, 1.0, 2.5, 10.0]) for owner in "abcd"}),
)
def test_rounds_in_which_only_debts_are_paid_may_be_skipped(
    requests: list[tuple[str, int, Priority]], weights: dict[str, float]
) -> None:
    """The order is that of the plain algorithm, which goes through each round."""
    fleet = Fleet()
    waiters = [
        PendingRequest(
            ticket=number,
            model_id="m",
            arrived=0.0,
            waiting_since=0.0,
            priority=priority,
            tenant=tenant(owner, tokens, weights[owner]),
        )
        for number, (owner, tokens, priority) in enumerate(requests)
    ]
    order = [waiter.ticket for waiter in fair_turns(fleet, InstanceView(model_id="m"), waiters)]
    if len({owner for owner, _, _ in requests}) == 1:
        assert order == list(range(len(requests)))
    else:
        assert order == _plainly(fleet, waiters)


def test_a_cheap_share_of_dear_requests_is_found_at_once() -> None:
    """The least weight and requests of a million tokens: a step does not go through a million rounds."""
    fleet = Fleet()
    waiters = [
        PendingRequest(
            ticket=number,
            model_id="m",
            arrived=0.0,
            waiting_since=0.0,
            priority=Priority.LOW,
            tenant=tenant("ab"[number % 2], 2**40, 0.01),
        )
        for number in range(100)
    ]
    order = [waiter.ticket for waiter in fair_turns(fleet, InstanceView(model_id="m"), waiters)]
    assert sorted(order) == list(range(100))
    assert [ticket for ticket in order if ticket % 2] == list(range(1, 100, 2))


def test_who_fills_the_queue_keeps_nobody_else_out() -> None:
    """The newest of the one with most places gives way to another key's; his own next one is refused."""
    driver = crowd(slots=1, max_queue_depth=6)
    full = [driver.arrive("a", tenant=tenant("flood")) for _ in range(7)]
    refused = driver.arrive("a", tenant=tenant("flood"))
    assert driver.refusals == {refused: "queue_full"}
    welcome = [driver.arrive("a", tenant=tenant("single")) for _ in range(2)]
    assert driver.refusals == {refused: "queue_full", full[-1]: "queue_full", full[-2]: "queue_full"}
    assert set(welcome) <= set(queue_order(driver.fleet, "a.gguf", driver.now))
    told = [it for it in driver.effects if isinstance(it, Refuse)][-1].problem
    assert "gave way to another key's" in told.message
    assert told.retry_after_s is not None


def test_a_common_queue_is_shared_as_well() -> None:
    """`max_queue_total` counts all models, and so does who has most of them."""
    driver = SchedulerDriver([spec("a", slots=1), spec("b", slots=1)], limits(max_queue_total=4))
    flood = [driver.arrive("a", tenant=tenant("flood")) for _ in range(4)]
    welcome = driver.arrive("b", tenant=tenant("single"))
    assert driver.refusals == {flood[-1]: "queue_full"}
    assert welcome in {waiter.ticket for waiter in driver.fleet.waiting}


def test_nobody_gives_way_to_one_who_would_have_as_much() -> None:
    """With equal shares the newcomer is refused; without keys all have one share."""
    driver = crowd(slots=1, max_queue_depth=4)
    for owner in ("x", "x", "x", "y", "y"):
        driver.arrive("a", tenant=tenant(owner))
    last = driver.arrive("a", tenant=tenant("y"))
    assert driver.refusals == {last: "queue_full"}
    nobody = crowd(slots=1, max_queue_depth=4)
    tickets = [nobody.arrive("a") for _ in range(6)]
    assert nobody.refusals == {tickets[-1]: "queue_full"}


def test_a_request_that_leaves_leaves_the_turns_right() -> None:
    """Waiters that go change nobody's turn."""
    driver = crowd(slots=1)
    service = Service(driver)
    tickets = [service.ask(tenant(owner, QUANTUM)) for owner in "aabbaabb"]
    for ticket in tickets[4:]:
        driver.feed(RequestLeft(ticket))
    left = queue_order(driver.fleet, "a.gguf", driver.now)
    assert [service.tenants[ticket].owner for ticket in left][-2:] in (["b", "b"], ["a", "b"])


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (GenerateRequest(prompt="x" * 400, max_tokens=50), 150),
        (GenerateRequest(messages=(Message(role="user", content="x" * 40),), max_tokens=1), 11),
        (GenerateRequest(prompt="x" * 400_000, max_tokens=512), 8192),
        (EmbedRequest(inputs=("x" * 40, (1, 2, 3))), 13),
        (DetokenizeRequest(tokens=(1, 2)), 2),
        (TokenizeRequest(content="x" * 400), 1),
    ],
)
def test_costs_are_estimated_from_lengths(request_: object, tokens: int) -> None:
    """Four characters a token, all that the answer may have, and at most the context."""
    assert token_estimate(request_, 8192) == tokens


def test_an_answer_without_a_bound_costs_a_slots_share() -> None:
    """It may fill that, or its prompt does; a prompt may come as tokens."""
    endless = GenerateRequest(prompt="x" * 400, max_tokens=AS_MANY_AS_FIT)
    assert token_estimate(endless, 8192, 2048) == 2048
    assert token_estimate(endless, 8192, 64) == 100
    assert token_estimate(GenerateRequest(prompt_tokens=(1, 2, 3), max_tokens=5), 8192) == 8
