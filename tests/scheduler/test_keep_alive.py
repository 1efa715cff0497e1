# SPDX-License-Identifier: GPL-3.0-only
"""How long a model stays when several have it stay: nobody takes it away from the others."""

from __future__ import annotations

import pytest
from support.operator_inputs import OperatorInputs
from support.scheduler_driver import SchedulerDriver, limits, spec

from modeld.domain.instance_state import InstanceState
from modeld.domain.request import Tenant
from modeld.scheduler.inputs import ModelWanted

ALICE = Tenant(owner="a1", name="alice", may_unload=False)
BOB = Tenant(owner="b2", name="bob", may_unload=False)
ADMIN = Tenant(owner="c3", name="root", may_unload=True)


def driver(ttl_s: float | None = None) -> SchedulerDriver:
    return SchedulerDriver([spec("a", ttl_s=ttl_s)], limits())


def ask(driver: SchedulerDriver, tenant: Tenant, keep_alive_s: float | None = None) -> None:
    """Serve a request of a model, which is loaded for it where it is not."""
    ticket = driver.arrive("a", tenant=tenant, keep_alive_s=keep_alive_s)
    if driver.state("a") is InstanceState.LOADING:
        driver.loaded("a")
    driver.serve(ticket)


def until(driver: SchedulerDriver) -> float | None:
    return driver.fleet.instance("a.gguf").keep_until


def test_one_key_alone_may_let_its_model_go() -> None:
    """What nobody else has asked for goes as soon as it is idle."""
    here = driver()
    ask(here, ALICE, 0.0)
    assert here.stops == ["a.gguf"]


@pytest.mark.parametrize("keep_alive_s", [None, -1.0, 600.0])
def test_a_key_takes_no_model_away_from_another(keep_alive_s: float | None) -> None:
    """Bob has it stay, by his request or by the model's time to live; alice's 0 changes nothing."""
    here = driver(ttl_s=600.0 if keep_alive_s is None else None)
    ask(here, BOB, keep_alive_s)
    stays = until(here)
    ask(here, ALICE, 0.0)
    assert here.stops == []
    assert until(here) == stays == (None if keep_alive_s == -1 else 600.0)


def test_the_last_word_of_a_key_takes_the_place_of_its_own_before() -> None:
    """Longer, shorter, for ever: each only for itself, and the longest of all counts."""
    here = driver()
    ask(here, BOB, 50.0)
    ask(here, ALICE, -1.0)
    assert until(here) is None
    ask(here, ALICE, 10.0)
    assert until(here) == 50.0
    here.now = 60.0
    ask(here, ALICE, 1.0)
    assert until(here) == 61.0
    assert set(here.fleet.instance("a.gguf").stays) == {"a1"}, "what is over is forgotten"


def test_who_may_unload_a_model_has_the_last_word() -> None:
    """An admin's `keep_alive` counts alone; without one he is like others."""
    here = driver(ttl_s=5.0)
    ask(here, BOB, 600.0)
    ask(here, ADMIN)
    assert until(here) == 600.0
    ask(here, ADMIN, 20.0)
    assert until(here) == 20.0
    ask(here, ADMIN, 0.0)
    assert here.stops == ["a.gguf"]


def test_without_keys_the_last_request_counts() -> None:
    """Everybody is one and the same."""
    here = driver()
    ask(here, Tenant(), 600.0)
    ask(here, Tenant(), 3.0)
    assert until(here) == 3.0


@pytest.mark.parametrize("how", ["preload", "load", "keep"])
def test_a_key_takes_no_model_away_from_the_operator(how: str) -> None:
    """What he had loaded stays for the model's `ttl`, or as long as he said."""
    here = driver(ttl_s=100.0)
    if how == "preload":
        here.feed(ModelWanted("a.gguf"))
    else:
        OperatorInputs(here).load("a", **{"keep_alive_s": 200.0} if how == "keep" else {})
    here.loaded("a")
    ask(here, ALICE, 0.0)
    assert here.stops == []
    assert until(here) == (200.0 if how == "keep" else 100.0)


def test_words_are_forgotten_with_the_model() -> None:
    """A model that went and came again stays for who asks for it now."""
    here = driver()
    ask(here, BOB, -1.0)
    OperatorInputs(here).unload("a")
    here.stopped("a")
    ask(here, ALICE, 0.0)
    assert here.stops == ["a.gguf", "a.gguf"]
    here.stopped("a")
    assert here.fleet.instance("a.gguf").stays == {}
