# SPDX-License-Identifier: GPL-3.0-only
"""How plans and operations are told in words."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support.daemon_answers import NOW, STATUS, answer

from modeld.cli.console.commands.change import plan_view
from modeld.cli.console.screen import as_text
from modeld.cli.console.views import outcome, taken_back, under_way
from modeld.domain.operation import OperationStatus
from modeld.domain.status import DaemonStatus
from modeld.scheduler.plan import LoadPlan

SNAPSHOTS = Path(__file__).parent / "snapshots"
PLAN = answer(
    LoadPlan, model="big.gguf", fits=True,
    verdict="big.gguf needs 590 MiB and fits after evicting small.gguf",
    needs_mb=590.2, free_mb=120.0, budget_mb=2048.0, wait_ms=1800, load_ms=2345,
    evicts=({"model_id": "small.gguf", "mb": 20.6, "why": "idle for 192 s"},),
    drains=({"model_id": "tinyllama.gguf", "mb": 1100.4, "why": "its turn is over, and 4 requests hold it"},),
    footprint={"weights_mb": 180.0, "kv_mb": 45.0, "compute_mb": 325.2, "overhead_mb": 40.0, "from": "x"},
)  # fmt: skip
DONE = answer(
    OperationStatus, id="1", kind="load", model="big.gguf", state="done", phase="done", progress=1.0,
    created_unix=NOW, ended_unix=NOW + 3.21, evicted=("small.gguf",), reason="big.gguf is ready",
)  # fmt: skip


@pytest.mark.parametrize("width", [None, 60])
def test_a_plan_is_a_verdict_and_its_figures(width: int | None) -> None:
    """First yes or no with the daemon's sentence, then who goes and why, and how long it takes."""
    name = f"plan-{width or 'pipe'}.txt"
    assert as_text(plan_view(PLAN, width), width) == (SNAPSHOTS / name).read_text(encoding="utf-8")


def test_a_plan_that_does_not_fit() -> None:
    """It says no, and nothing of times."""
    plan = answer(
        LoadPlan, model="big.gguf", fits=False, verdict="it needs 9000 MiB of 2048", needs_mb=9000.0
    )
    assert as_text(plan_view(plan, None)) == "no: it needs 9000 MiB of 2048\nneeds  9000 MiB\n"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "big: loaded in 3.2s; gone for it: small"),
        ({"evicted": (), "ended_unix": NOW}, "big: loaded"),
        ({"kind": "switch"}, "big: switched to it in 3.2s; gone for it: small"),
        ({"kind": "unload", "evicted": ()}, "big: unloaded in 3.2s"),
        ({"state": "failed", "error": "no\nroom"}, "big: the load failed: no\\nroom"),
        ({"state": "failed", "reason": "it died"}, "big: the load failed: it died"),
        ({"state": "cancelled", "reason": "unload came"}, "big: the load was given up: unload came"),
    ],
)
def test_how_an_operation_ended(changes: dict[str, object], told: str) -> None:
    """In a line: what, how long, who went for it; or why not."""
    assert outcome(msgspec.structs.replace(DONE, **changes)) == told


@pytest.mark.parametrize(
    ("phase", "told"),
    [
        ("queued", "queued: others come first"), ("draining", "draining: others come first"),
        ("loading", "loading"), ("stopping", "stopping"), ("", "running"),
    ],
)  # fmt: skip
def test_what_an_operation_is_doing(phase: str, told: str) -> None:
    """Waiting has its reason."""
    doing = msgspec.structs.replace(DONE, state="running", phase=phase, reason="others come first")
    assert under_way(doing) == told


def test_what_became_of_an_operation_that_was_taken_back() -> None:
    """It is gone; or it was too late; or others wait for the model, which is loaded all the same."""
    gone = msgspec.structs.replace(DONE, state="cancelled", evicted=())
    nobody = answer(DaemonStatus, state="ready")
    assert taken_back(gone, nobody) == "big: the load was taken back"
    assert taken_back(DONE, nobody) == "big: too late, the load is done"
    told = "big: the load was taken back, but 1 request waits for the model: its load goes on"
    assert taken_back(gone, STATUS) == told
    assert taken_back(msgspec.structs.replace(gone, evicted=("a.gguf",)), STATUS) == told + "; gone for it: a"
