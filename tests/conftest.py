# SPDX-License-Identifier: GPL-3.0-only
"""What all tests share: lanes, Hypothesis on a busy machine, Ctrl-C for the processes that tests start."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from support.lanes import Guard, sort_into_lanes

for name, derandomize in (("modeld", "CI" in os.environ), ("fast", True)):
    settings.register_profile(
        name,
        deadline=None,
        derandomize=derandomize,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("modeld")
SCHEDULES = "MODELD_SCHEDULES"
guard = Guard()
guard.install()


def pytest_configure(config: pytest.Config) -> None:
    """Look at the same cases each time in the fast lane, and at fewer schedules."""
    if config.option.markexpr == "fast":
        settings.load_profile("fast")
        os.environ.setdefault(SCHEDULES, "1000")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the tests into lanes."""
    sort_into_lanes(config, items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse calls of llama.cpp in the fast lane."""
    os.environ.pop(SCHEDULES, None)  # Test modules have read it; to modeld it would be an unknown setting.
    if session.config.option.markexpr == "fast":
        guard.forbid_llama()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hold fast tests to what their lane promises."""
    with guard.around(item):
        return (yield)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # A shell has it so for what runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _close_files_of_llama_cpp() -> None:
    """Close the two files of /dev/null that llama_cpp opens when it is imported, and never closes.

    Python would tell of them as it ends, since here every warning is an error. Only then: the models of its
    high-level class, which tests compare with, write there.
    """
    utils = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if utils is not None:
            getattr(utils, name).close()


atexit.register(_close_files_of_llama_cpp)
