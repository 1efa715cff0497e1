# SPDX-License-Identifier: GPL-3.0-only
"""Suites, and which words go to another program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from testctl_lib.commands import parse
from testctl_lib.steps import ToolError
from testctl_lib.suites import suite_arguments

PROGRAM = Path(__file__).resolve().parents[3] / "tools" / "testctl"


def test_suites_are_markers_and_folders() -> None:
    """A wrong suite is refused with the names there are."""
    assert suite_arguments("unit") == ["tests", "-m", "not real and not e2e"]
    assert suite_arguments("tools") == ["tests/tools"]
    with pytest.raises(ToolError, match=r"there is no suite 'x'; there are: all, .*lint.*tools"):
        suite_arguments("x")


@pytest.mark.parametrize(
    ("words", "suite", "rest"),
    [
        (["test"], "all", []),
        (["test", "core"], "core", []),
        (["test", "--", "-q"], "all", ["-q"]),
        (["test", "core", "--", "-k", "a", "--", "b"], "core", ["-k", "a", "--", "b"]),
    ],
)
def test_what_follows_two_dashes_goes_to_pytest(words: list[str], suite: str, rest: list[str]) -> None:
    """With and without a suite before them, and untouched."""
    arguments = parse(words)
    assert (arguments.suite, arguments.rest) == (suite, rest)


def test_a_benchmark_has_its_own_options() -> None:
    """With or without two dashes, they reach the benchmark and mean nothing here."""
    assert parse(["bench", "cancel", "--help"]).rest == ["cancel", "--help"]
    assert parse(["bench", "--", "--streams", "4"]).rest == ["--streams", "4"]


def test_a_soak_has_its_own_options() -> None:
    """They reach the soak as they are."""
    assert parse(["soak", "--minutes", "30"]).rest == ["--minutes", "30"]
    assert parse(["soak", "--", "--help"]).rest == ["--help"]


@pytest.mark.process
def test_the_launcher_needs_no_package() -> None:
    """It makes the virtual environment, so the standard library has to be enough for every command."""
    command = [sys.executable, "-I", "-S", PROGRAM, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout
