# SPDX-License-Identifier: GPL-3.0-only
"""How the daemon's state looks, as plain text: on wide and narrow terminals, and in a pipe."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path

import msgspec
import pytest
from support.daemon_answers import DECISIONS, MODELS, NOW, STATUS, answer

from modeld.cli.console.format import line
from modeld.cli.console.screen import as_text
from modeld.cli.console.tables import decisions_table, models_table, operations_table
from modeld.cli.console.views import newest, ps_view, status_view, under_way
from modeld.dialects.native.listing import ModelBody
from modeld.domain.operation import OperationStatus
from modeld.domain.status import DaemonStatus, Decision, DeviceStatus, InstanceStatus

PLACE = "127.0.0.1:8080"
SNAPSHOTS = Path(__file__).parent / "snapshots"


def snapshot(name: str) -> str:
    """How it looked when somebody last looked at it and found it right."""
    return (SNAPSHOTS / f"{name}.txt").read_text(encoding="utf-8")


def test_ps_in_a_pipe_is_one_line_a_model_with_every_column() -> None:
    """Nothing is cut or left out, no value is a dash, and control characters are written out."""
    assert as_text(ps_view(STATUS, PLACE, None), None) == snapshot("ps-pipe")


@pytest.mark.parametrize("width", [40, 80, 132])
def test_ps_on_a_terminal_leaves_out_what_matters_least(width: int) -> None:
    """The daemon stands above the table; where there is no column for reasons, they stand below it."""
    assert as_text(ps_view(STATUS, PLACE, width), width) == snapshot(f"ps-{width}")


def test_status_is_one_page() -> None:
    """Memory, devices, models and the last decisions, whose reasons are folded."""
    assert as_text(status_view(STATUS, PLACE, 80, UTC), 80) == snapshot("status-80")


@pytest.mark.parametrize("width", [None, 80])
def test_models_tells_what_is_wrong_with_a_file(width: int | None) -> None:
    """A damaged file is listed with the reason, on a narrow terminal instead of other columns."""
    assert as_text([models_table(MODELS, width)], width) == snapshot(f"models-{width or 'pipe'}")


@pytest.mark.parametrize("width", [None, 50])
def test_decisions_have_their_whole_reason(width: int | None) -> None:
    """On a terminal a long reason goes on in the next line; refusals for one reason are counted."""
    assert as_text([decisions_table(DECISIONS, NOW, width, UTC)], width) == snapshot(
        f"decisions-{width or 'pipe'}"
    )


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 100, 132, 200, 400])
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    """Whatever the width, each model stays on a line of its own, with its state."""
    shown = as_text(ps_view(STATUS, PLACE, width), width).splitlines()
    assert max(map(len, shown)) <= width
    assert any(line.startswith("small ") and line.split()[1] == "ready" for line in shown)


def test_wide_characters_are_counted_as_two_cells() -> None:
    """A name in Chinese is cut where the terminal ends, and the columns stay below each other."""
    named = answer(InstanceStatus, model_id="\u5927\u6a21\u578b" * 20 + ".gguf", state="ready")
    one = msgspec.structs.replace(STATUS, instances=(named, STATUS.instances[3]), decisions=())
    shown = as_text(ps_view(one, PLACE, 60), 60).splitlines()
    cut = next(line for line in shown if line.startswith("\u5927"))
    plain = next(line for line in shown if line.startswith("small "))
    wide = sum("\u4e00" <= char <= "\u9fff" for char in cut)
    assert cut.index("ready") + wide == plain.index("ready")


def test_a_stopped_model_is_shown_only_on_request() -> None:
    """`ps` leaves out what holds no memory and is not waited for; `ps --all` does not."""
    assert "old" not in as_text(ps_view(STATUS, PLACE, None))
    assert "\nold " in as_text(ps_view(STATUS, PLACE, None, everything=True))


def test_an_empty_daemon_says_so() -> None:
    """Without a loaded model a terminal has a sentence, and a pipe the heading alone."""
    empty = answer(DaemonStatus, state="loading", version="0.1.0")
    shown = as_text(ps_view(empty, PLACE, 80), 80)
    assert shown.endswith("\nno model is loaded\n")
    assert "memory: 0.0 MiB held, no budget\n" in shown
    assert as_text(ps_view(empty, PLACE, None)).splitlines()[0].startswith("MODEL  STATE")


def test_what_is_wrong_is_told_above() -> None:
    """The scheduler's own complaint, memory without an owner and the last error are not overlooked."""
    ill = msgspec.structs.replace(
        STATUS,
        error="the scheduler is stuck",
        last_error="big: died",
        unaccounted_mb=20.0,
        warnings=("strangers reach it without a key",),
    )
    shown = as_text(status_view(ill, PLACE, 120, UTC), 120)
    assert "\nerror: the scheduler is stuck\n" in shown
    assert "\nlast error: big: died\n" in shown
    assert "20.0 MiB unaccounted" in shown
    assert "\nwarning: strangers reach it without a key\n" in shown


def test_the_newest_decisions_of_some_models() -> None:
    """A number counts what is shown, not what is looked at."""
    assert newest(DECISIONS, frozenset({"small.gguf"}), 1) == [DECISIONS[1]]
    assert newest(DECISIONS, frozenset(), 2) == list(DECISIONS[-2:])


def test_a_budget_that_others_make_smaller_is_told_with_its_reason() -> None:
    """What can be given out now is what the share is of, and each device says who holds its memory."""
    machine = answer(
        DeviceStatus,
        name="CPU",
        kind="cpu",
        total_mb=4000,
        free_mb=900,
        ours_mb=600,
        foreign_mb=2500,
        effective_mb=1500,
    )
    short = "2048 MiB are set, but other processes hold 2500 of the 4000 MiB of CPU"
    status = msgspec.structs.replace(
        STATUS,
        effective_budget_mb=1500.0,
        shortage=short,
        devices=(machine,),
        used_est_mb=718.0,
        margin_mb=64,
    )
    text = as_text(status_view(status, PLACE, 200, UTC), 200)
    assert "memory: 718 of 1436 MiB held (50%), 64.0 MiB margin" in text
    assert f"less memory than set: {short}" in text
    assert "device CPU: 900 of 4000 MiB free, models hold 600 and others 2500; models may hold 1500" in text


@pytest.mark.parametrize("width", [None, 60, 300])
def test_no_word_of_the_daemon_can_steer_a_terminal(width: int | None) -> None:
    """Whichever key it is in: also states and versions, which are harmless where nobody means harm."""
    bad = "\x1b[2J\r\u202e"
    instance = answer(InstanceStatus, model_id=bad, state=bad, last_error=bad)
    decision = answer(Decision, at_unix=NOW, action=bad, model_id=bad, reason=bad)
    status = answer(
        DaemonStatus, state=bad, version=bad, error=bad, shortage=bad, last_error=bad, warnings=(bad,),
        instances=(instance,), decisions=(decision,), devices=(answer(DeviceStatus, name=bad),),
    )  # fmt: skip
    model = answer(
        ModelBody, id=bad, state=bad, quant=bad, family=bad, aliases=(bad,), error=bad, size_bytes=1
    )  # fmt: skip
    operation = answer(
        OperationStatus, id=bad, kind=bad, model=bad, state=bad, phase=bad, reason=bad, key=bad
    )  # fmt: skip
    shown = as_text(
        [
            *status_view(status, PLACE, width, UTC),
            models_table([model], width),
            operations_table([operation], NOW, width, UTC),
            line(under_way(operation)),
        ],
        width,
    )
    assert "\\x1b" in shown
    assert all(char.isprintable() for char in shown if char != "\n")
