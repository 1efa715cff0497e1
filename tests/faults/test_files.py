# SPDX-License-Identifier: GPL-3.0-only
"""A model's file deleted, cut short or replaced, in each state of its model."""

from __future__ import annotations

import sys
from itertools import product

import pytest
from soaking import file_faults
from soaking.daemon import SoakDaemon
from support.fault_cases import cases, what_stays

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="what is asserted is read from /proc"),
]
EVERYTHING = list(product(file_faults.FAULTS, file_faults.MOMENTS))
USUAL = [
    ("deleted", "decode"),
    ("truncated", "before it is read"),
    ("truncated", "decode"),
    ("replaced", "load"),
]


@pytest.mark.parametrize(("fault", "when"), cases(USUAL, EVERYTHING))
async def test_what_happens_to_a_file_is_told_or_not_felt(here: SoakDaemon, fault: str, when: str) -> None:
    """A text is what the model always says, or its client reads why not; a new file there is served."""
    row = await file_faults.change_file(here, fault, when)
    assert await what_stays(here, row) == []
    assert row.recovery_s is not None
