# SPDX-License-Identifier: GPL-3.0-only
"""Sort tests into the fast, the full and the extended lane, and hold the fast one to what it promises.

A test is fast unless it has one of the marks below, by itself or from a fixture. The guard makes the promise
true: a fast test that starts a process fails in every lane, and one that calls llama.cpp in the fast lane.
"""

from __future__ import annotations

import multiprocessing.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

NOT_FAST = {"real", "e2e", "process", "llama", "slow", "extended"}
LOADING_FIXTURES = {"tiny_path", "tiny_lab"}
"""Fixtures of tests/engine whose tests call llama.cpp."""
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"}
"""Audit events of Python that a new process causes."""


def sort_into_lanes(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is fast, and deselect what is extended unless it is asked for."""
    for item in items:
        if LOADING_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("llama")
        if not NOT_FAST & {mark.name for mark in item.iter_markers()}:
            item.add_marker("fast")
    if "extended" not in config.option.markexpr:
        extended = [item for item in items if item.get_closest_marker("extended")]
        if extended:
            items[:] = [item for item in items if item not in extended]
            config.hook.pytest_deselected(items=extended)


class Guard:
    """Refuses what a fast test must not do, while one runs."""

    def __init__(self) -> None:
        self._test = ""
        self._spawn = multiprocessing.util.spawnv_passfds

    def install(self) -> None:
        """Watch for new processes."""
        sys.addaudithook(self._audit)
        multiprocessing.util.spawnv_passfds = self._spawn_checked  # it has no audit event of its own

    def forbid_llama(self) -> None:
        """Watch for calls of llama.cpp, if any test has imported it."""
        for name, module in list(sys.modules.items()):
            if name in {"llama_cpp", "llama_cpp.llama_cpp"}:
                for function in [key for key in vars(module) if key.startswith("llama_")]:
                    if callable(getattr(module, function)) and not isinstance(
                        getattr(module, function), type
                    ):
                        setattr(module, function, self._checked(function, getattr(module, function)))

    @contextmanager
    def around(self, item: pytest.Item) -> Iterator[None]:
        """Refuse it while this test runs, if it is a fast one."""
        self._test = item.nodeid if item.get_closest_marker("fast") else ""
        try:
            yield
        finally:
            self._test = ""

    def _refuse(self, what: str, mark: str) -> None:
        if self._test:
            raise AssertionError(f"{self._test} is a fast test and {what}: mark it pytest.mark.{mark}")

    def _audit(self, event: str, _arguments: Sequence[object]) -> None:
        if event in STARTS:
            self._refuse("starts a process", "process")

    def _spawn_checked(self, *arguments: Any) -> Any:
        self._refuse("starts a process", "process")
        return self._spawn(*arguments)

    def _checked(self, name: str, function: Any) -> Any:
        def checked(*arguments: Any) -> Any:
            self._refuse(f"calls {name}", "llama")
            return function(*arguments)

        return checked
