# SPDX-License-Identifier: GPL-3.0-only
"""The storm's own judgement: what it asks for, what it reads off a daemon's events, and what fails a run."""

from __future__ import annotations

import json

import pytest
from benchmark import storm, storm_ledger, storm_report, storm_requests
from benchmark.daemon import BenchError
from benchmark.storm import Answer, Played, Room
from benchmark.storm_requests import MODELS
from benchmark.worker_memory import MemorySample

ROOM = Room(budget_mb=250.0, margin_mb=30.0)


class Log:
    """Writes events as a daemon does, one a second."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tickets = 0

    def tell(self, kind: str, model: str = "", **more: object) -> None:
        """Write one event."""
        at = len(self.lines) + 1
        head = {"seq": at, "run": "r", "at_unix": 1000.0 + at, "uptime_ms": 1000.0 * at, "kind": kind}
        self.lines.append(json.dumps(head | {"model": model} | more))

    def load(self, model: str, need_mb: float = 100.0) -> None:
        """A load that begins, goes on and ends."""
        self.tell("loading", model, reason="1 request waits", numbers={"need_mb": need_mb})
        self.tell("loading", model, numbers={"progress": 0.5})
        self.tell("ready", model, numbers={"load_s": 1.0, "slots": 1})

    def ask(self, model: str) -> None:
        """A request that is served."""
        self.tickets += 1
        self.tell("arrived", model, ticket=self.tickets, numbers={"need_mb": 100.0, "slots": 1})
        self.tell("granted", model, ticket=self.tickets)
        self.tell("ended", model, ticket=self.tickets, cause="length", numbers={"slot_ms": 10.0})

    def stop(self, model: str) -> None:
        """A model that gives its memory back."""
        self.tell("evicting", model, cause="room")
        self.tell("stopped", model, numbers={"freed_mb": 100.0})


def usual() -> Log:
    """Three models, room for two: a, b, a, c, a in order."""
    log = Log()
    log.load("a")
    log.ask("a")
    log.load("b")
    log.ask("b")
    log.ask("a")
    log.stop("b")
    log.load("c")
    log.ask("c")
    log.ask("a")
    return log


def samples(*sizes: float) -> list[MemorySample]:
    """Measurements of these sizes, one a second from the first event on."""
    return [MemorySample(1001.5 + at, size, size, {"a": size}) for at, size in enumerate(sizes)]


def answer(*problems: str) -> Answer:
    return Answer("a", 1000.0, 0.5, 1.0, 8, problems)


def test_the_ledger_is_known_at_every_instant() -> None:
    """It grows when a load begins, not when it is done, and shrinks when the memory was given back."""
    record = storm_ledger.read(usual().lines, 220.0)
    assert [change.total_mb for change in record.ledger.changes] == [100.0, 200.0, 100.0, 200.0]
    begins = [change.at for change in record.ledger.changes]
    assert [record.ledger.at(at) for at in (0.0, begins[0], begins[1] - 0.1, begins[2], 9999.0)] == [
        0.0,
        100.0,
        100.0,
        100.0,
        200.0,
    ]
    assert record.ledger.most_mb == 200.0


def test_loads_are_held_against_the_optimum() -> None:
    """Progress is no load; with room for any two and no three, Belady's rule is the optimum."""
    loads = storm_ledger.read(usual().lines, 220.0).loads
    assert (loads.by_model, loads.total) == ({"a": 1, "b": 1, "c": 1}, 3)
    assert (loads.belady, loads.by_service, loads.least, loads.exact) == (3, 3, 3, True)
    assert loads.played.keys() == {"cost", "lru"}
    assert not storm_ledger.read(usual().lines, 300.0).loads.exact
    assert not storm_ledger.read(usual().lines, 150.0).loads.exact


def test_a_good_storm_has_no_complaint() -> None:
    """The workers stay below the ledger, and the table tells of each model."""
    played = Played(1000.0, [answer()], samples(0.0, 90.0, 180.0), usual().lines)
    found = storm.judge(played, ROOM)
    assert found.reasons == []
    assert (found.most_rss_mb, found.most_pss_mb) == (180.0, 180.0)
    told = storm_report.describe(played, found)
    assert "1 of 1 answers are whole" in told
    assert "3 loads; Belady's rule, which knows all arrivals: 3" in told
    assert "the optimum" in told
    assert storm_report.as_json(played, found)["results"]["loads"]["total"] == 3
    assert "ash-Q4_0.gguf" in storm_report.by_model(MODELS[:1], played, found)


def test_every_breach_is_told() -> None:
    """Memory above the budget, a ledger above its part of it, a broken answer, a failure: each fails it."""
    log = usual()
    log.tell("failed", "a", cause="engine", reason="it died")
    played = Played(1000.0, [answer("cut"), answer("cut")], samples(251.0), log.lines)
    reasons = storm.judge(played, Room(budget_mb=250.0, margin_mb=60.0)).reasons
    assert reasons == [
        "an answer was not whole: cut",
        "failed: a it died",
        "the workers held 251 MiB, and the budget is 250",
        "the ledger held 200.0 MiB, 190.0 are allowed",
    ]


def test_too_many_loads_fail_it() -> None:
    """Twice those of Belady's rule are allowed, and not one more."""
    log = Log()
    log.ask("a")
    for _ in range(3):
        log.load("a")
        log.stop("a")
    reasons = storm.judge(Played(1000.0, [answer()], samples(10.0), log.lines), ROOM).reasons
    assert reasons == ["3 loads are more than 2 times the 1 of Belady's rule"]


def test_the_same_seed_is_the_same_storm() -> None:
    """In order of time, within the bounds, and the first model is asked for most."""
    asks = storm_requests.draw(MODELS, 300, 60.0, seed=7)
    assert asks == storm_requests.draw(MODELS, 300, 60.0, seed=7)
    assert asks != storm_requests.draw(MODELS, 300, 60.0, seed=8)
    assert [ask.at_s for ask in asks] == sorted(ask.at_s for ask in asks)
    assert all(0 <= ask.at_s <= 60.0 for ask in asks)
    counts = [sum(ask.model == model.id for ask in asks) for model in MODELS]
    assert max(counts) == counts[0] > 2 * counts[-1] > 0
    cells = {model.id: model.ctx for model in MODELS}
    assert all(len(ask.prompt.split()) + ask.max_tokens < cells[ask.model] for ask in asks)


def test_a_budget_has_room_for_two_and_not_for_three() -> None:
    """It follows from the estimates; models so different that three fit are refused."""
    room = storm.room_for_two([100.0, 120.0, 110.0], margin_mb=50.0)
    assert room.room_mb == pytest.approx(230 * storm.SPARE, abs=0.5)
    with pytest.raises(BenchError, match="some three"):
        storm.room_for_two([10.0, 20.0, 90.0, 110.0], margin_mb=0.0)
