# SPDX-License-Identifier: GPL-3.0-only
"""`modeld simulate` for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from modeld.cli.main import modeld

TRACES = Path(__file__).parent.parent / "traces"
STARVING = str(TRACES / "starving.jsonl")


def invoke(*args: str, text: str | None = None) -> Result:
    return CliRunner().invoke(modeld, ["simulate", *args], input=text, prog_name="modeld")


def test_the_table_compares_both_policies() -> None:
    """A column for each, with what was served, refused, loaded, and how long it took."""
    result = invoke(STARVING)
    assert result.exit_code == 0
    rows = {line[:24].strip(): line[24:].split() for line in result.stdout.splitlines()}
    assert rows["policy"] == ["lru", "cost"]
    assert rows["served"] == ["600", "607"]
    assert rows["refused: waited_too_long"] == ["7", "0"]
    assert rows["wait, worst"] == ["30.00", "s", "12.80", "s"]
    assert "15 loads by Belady's rule" in result.stdout


def test_json_is_for_programs() -> None:
    """One object: the reports of the policies asked for, and the optimum."""
    result = json.loads(invoke(STARVING, "--policy", "cost", "--json").stdout)
    assert [report["policy"] for report in result["reports"]] == ["cost"]
    assert result["reports"][0]["served"] == 607
    assert result["optimum"] == {"belady_loads": 15, "fewest_loads_in_order": 15, "models_asked_for": 2}
    assert result["budget_mb"] == 100


def test_settings_are_the_flags_of_serve() -> None:
    """With room for both models nothing is evicted; with a longer max_wait LRU refuses nobody."""
    roomy = json.loads(invoke(STARVING, "--vram-budget-mb", "1GiB", "--json").stdout)
    assert [report["evictions"] for report in roomy["reports"]] == [0, 0]
    patient = json.loads(invoke(STARVING, "--max-wait", "1h", "--policy", "lru", "--json").stdout)
    assert patient["reports"][0]["refused"] == {}


def test_models_may_come_from_a_file_of_their_own_and_requests_from_standard_input(tmp_path: Path) -> None:
    """A recorded trace need not begin with its models."""
    models = tmp_path / "models.json"
    models.write_text('{"models": [{"id": "a", "size_mb": 10}]}', encoding="utf-8")
    lines = '{"at_ms": 0, "model": "a", "service_ms": 5}\n\n'
    result = invoke("-", "--models", str(models), "--policy", "cost", text=lines)
    assert result.exit_code == 0
    assert "1 requests over 0.0 min for 1 models, unlimited memory" in result.stdout


def test_traces_and_models_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As Windows' editors write them."""
    models, trace = tmp_path / "models.json", tmp_path / "trace.jsonl"
    models.write_text('{"models": [{"id": "a", "size_mb": 10}]}', encoding="utf-8-sig")
    trace.write_text('{"at_ms": 0, "model": "a", "service_ms": 5}\n', encoding="utf-8-sig")
    assert invoke(str(trace), "--models", str(models), "--policy", "cost").exit_code == 0


@pytest.mark.parametrize(
    ("args", "text", "message"),
    [
        (["/no/such/trace"], None, "/no/such/trace: No such file or directory"),
        (["-"], "", "the trace is empty"),
        (["-"], "{}", "line 1: Object missing required field `models`"),
        ([STARVING, "--models", "/no/models"], None, "/no/models: No such file"),
        ([STARVING, "--max-wait", "soon"], None, '"soon" is no duration'),
        ([STARVING, "--vram-budget-mb", "auto"], None, "give the budget as a number"),
        ([STARVING, "--policy", "fifo"], None, "'fifo' is not one of"),
    ],
)
def test_what_cannot_be_replayed_is_explained(args: list[str], text: str | None, message: str) -> None:
    """One sentence on standard error, no traceback, and an exit code that is not 0."""
    result = invoke(*args, text=text)
    assert result.exit_code in {1, 2}
    assert message in result.stderr
    assert isinstance(result.exception, SystemExit)
