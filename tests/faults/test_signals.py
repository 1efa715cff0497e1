# SPDX-License-Identifier: GPL-3.0-only
"""Signals to a real worker at each moment of its life; tests/faults/test_workers.py has those in decode."""

from __future__ import annotations

import signal
import sys
from itertools import product

import pytest
from soaking import worker_faults
from soaking.daemon import SoakDaemon
from support.fault_cases import TIMES, cases, what_stays

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="what is asserted is read from /proc"),
]
EVERYTHING = [(number.name, when) for number, when in product(worker_faults.SIGNALS, worker_faults.MOMENTS)]
USUAL = [
    ("SIGSEGV", "load"),
    ("SIGABRT", "prefill"),
    ("SIGKILL", "unload"),
]


@pytest.mark.parametrize(("name", "when"), cases(USUAL, EVERYTHING))
async def test_a_signal_costs_its_own_model_only(here: SoakDaemon, name: str, when: str) -> None:
    """Who saw nothing of an answer yet is served; other streams are what they are; nothing stays behind."""
    row = await worker_faults.signal_worker(here, signal.Signals[name], when)
    assert await what_stays(here, row) == []
    assert row.recovery_s is not None


@pytest.mark.parametrize("when", worker_faults.ABORTS if TIMES > 1 else ["prefill"])
async def test_an_assertion_of_llama_cpp_ends_its_own_process_only(here: SoakDaemon, when: str) -> None:
    """A file that changed behind our look aborts llama.cpp; with the right file back the model is served."""
    row = await worker_faults.abort_worker(here, when)
    assert await what_stays(here, row) == []
    assert row.recovery_s is not None


@pytest.mark.parametrize("when", worker_faults.LIMITS if TIMES > 1 else ["prefill"])
async def test_a_worker_without_memory_ends_or_refuses(here: SoakDaemon, when: str) -> None:
    """RLIMIT_AS reached in a worker: its clients get a legal answer, and the next worker serves them."""
    row = await worker_faults.limit_memory(here, when)
    assert await what_stays(here, row) == []
    assert row.recovery_s is not None
