# SPDX-License-Identifier: GPL-3.0-only
"""The lanes of the tests: what is fast, what is left out, and that a fast test keeps its promise."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from support.lanes import Guard, sort_into_lanes


class Item:
    """A test as pytest collects it, as far as lanes look at it."""

    nodeid = "tests/test_x.py::test_x"

    def __init__(self, *marks: str, fixtures: tuple[str, ...] = ()) -> None:
        self.marks = list(marks)
        self.fixturenames = fixtures

    def iter_markers(self):
        return [SimpleNamespace(name=mark) for mark in self.marks]

    def add_marker(self, mark: str) -> None:
        self.marks.append(mark)

    def get_closest_marker(self, mark: str) -> str | None:
        return mark if mark in self.marks else None


def sort(items: list[Item], asked: str = "") -> list[Item]:
    """Sort them, and return those that are left out."""
    left_out: list[Item] = []

    def deselected(items: list[Item]) -> None:
        left_out.extend(items)

    hook = SimpleNamespace(pytest_deselected=deselected)
    sort_into_lanes(SimpleNamespace(option=SimpleNamespace(markexpr=asked), hook=hook), items)
    return left_out


@pytest.mark.parametrize("mark", ["real", "e2e", "process", "llama", "slow", "extended"])
def test_a_test_is_fast_unless_a_mark_says_otherwise(mark: str) -> None:
    """A new test needs no mark to be in the fast lane."""
    plain, marked = Item(), Item(mark)
    sort([plain, marked])
    assert plain.marks == ["fast"]
    assert marked.marks == [mark]


def test_a_fixture_that_loads_a_model_takes_its_tests_out_of_the_fast_lane() -> None:
    """They need no mark of their own."""
    item = Item(fixtures=("tiny_lab",))
    sort([item])
    assert item.marks == ["llama"]


def test_extended_tests_run_only_when_they_are_asked_for() -> None:
    """Neither by default nor with another mark."""
    plain, extended = Item("real"), Item("real", "extended")
    assert sort([plain, extended]) == [extended]
    assert sort([plain, extended], "real") == [extended]
    assert sort([plain, extended], "extended") == []


def test_a_fast_test_that_starts_a_process_fails() -> None:
    """The guard that `tests/conftest.py` installs refuses it, with the mark that is missing."""
    with pytest.raises(
        AssertionError, match=r"is a fast test and starts a process: mark it pytest\.mark\.process"
    ):
        subprocess.run([sys.executable, "-c", ""], check=False)


def test_a_fast_test_that_calls_llama_cpp_fails() -> None:
    """So does this; a test with a mark may do both."""
    guard = Guard()
    function = guard._checked("llama_decode", lambda: 0)
    with guard.around(Item("fast")), pytest.raises(AssertionError, match=r"calls llama_decode.*mark\.llama"):
        function()
    with guard.around(Item("llama")):
        assert function() == 0
