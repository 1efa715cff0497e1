# SPDX-License-Identifier: GPL-3.0-only
"""What the operator is shown of the scheduler's decisions."""

from __future__ import annotations

from modeld.runtime.reporting.observer import KEPT_DECISIONS, KEPT_REFUSALS, SchedulerObserver
from modeld.scheduler.effects import RecordDecision
from modeld.telemetry.metrics import Metrics


def test_a_flood_of_refusals_does_not_hide_the_other_decisions() -> None:
    """A thousand refusals of one kind are one decision that counts them."""
    observer = SchedulerObserver(Metrics())
    observer.decided(RecordDecision(action="load", model_id="a", reason="wanted"))
    for number in range(1000):
        observer.decided(
            RecordDecision(action="refuse", model_id="a", reason=f"full {number}", kind="queue_full")
        )
    observer.decided(RecordDecision(action="evict", model_id="a", reason="room"))
    assert [it.action for it in observer.decisions] == ["load", "refuse", "evict"]
    assert observer.decisions[1].numbers == {"times": 1000.0}
    assert observer.decisions[1].reason == "full 999"


def test_decisions_and_refusals_are_bounded() -> None:
    """However much happens, the last fifty are shown, newest last."""
    observer = SchedulerObserver(Metrics())
    for number in range(200):
        observer.decided(
            RecordDecision(action="refuse", model_id=str(number), reason="full", kind="queue_full")
        )
        observer.decided(RecordDecision(action="load", model_id=str(number), reason="wanted"))
    shown = observer.decisions
    assert len(shown) == KEPT_DECISIONS
    assert sum(it.action == "refuse" for it in shown) <= KEPT_REFUSALS
    assert shown[-1].model_id == "199"


def test_failures_are_the_last_error() -> None:
    """`last_error` names the model and the reason."""
    observer = SchedulerObserver(Metrics())
    observer.decided(RecordDecision(action="load_failed", model_id="a", reason="the file is odd"))
    assert observer.last_error == "a: the file is odd"
