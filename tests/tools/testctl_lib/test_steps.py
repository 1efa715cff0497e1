# SPDX-License-Identifier: GPL-3.0-only
"""Long commands, the cache, and locks between runs."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from pathlib import Path

import pytest
from testctl_lib.paths import cache, locked
from testctl_lib.steps import ToolError, ended_how, run_step

pytestmark = pytest.mark.process


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MODELD_CACHE wins over XDG_CACHE_HOME, which wins over the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MODELD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache("a") == tmp_path / ".cache/modeld/a"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache() == tmp_path / "xdg/modeld"
    monkeypatch.setenv("MODELD_CACHE", str(tmp_path / "own"))
    assert cache("b").is_dir()
    assert cache("b") == tmp_path / "own/b"


def test_a_failing_step_shows_its_end_and_its_command(own_cache: Path) -> None:
    """The message holds the output's end, how it ended, and the command to try by hand."""
    command = [sys.executable, "-c", "print('last words'); raise SystemExit(3)"]
    with pytest.raises(ToolError, match=r"(?s)exit code 3.*last words.*The command was: ") as caught:
        run_step("fail on purpose", command)
    assert str(own_cache / "logs") in str(caught.value)


def test_a_step_that_works_leaves_no_log(own_cache: Path) -> None:
    """Its output is returned, and the cache does not fill up."""
    assert run_step("speak", [sys.executable, "-c", "print('hello')"]) == "hello\n"
    assert list((own_cache / "logs").iterdir()) == []


def test_a_death_by_signal_has_its_name() -> None:
    """SIGILL is what a person can look up, -4 is not."""
    assert ended_how(-4) == "killed by SIGILL"
    assert ended_how(2) == "exit code 2"


def _hold_lock(held: object, release: object) -> None:
    with locked("models"):
        held.set()
        release.wait(30)


def test_two_runs_do_not_collide(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run waits, says so, and goes on when the first has ended."""
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold_lock, args=(held, release))
    other.start()
    try:
        assert held.wait(30)
        threading.Timer(0.2, release.set).start()
        with locked("models"):
            assert release.is_set()
    finally:
        release.set()
        other.join(30)
    assert own_cache.exists()
    assert "another testctl works on models; waiting for it" in capsys.readouterr().out
