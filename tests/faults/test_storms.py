# SPDX-License-Identifier: GPL-3.0-only
"""Clients by the hundred that leave at random moments, and clients that stop reading, against real models."""

from __future__ import annotations

import sys

import pytest
from soaking import client_faults
from soaking.daemon import SoakDaemon
from support.fault_cases import TIMES, what_stays

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="what is asserted is read from /proc"),
]
CLIENTS = 100 * TIMES
"""MODELD_FAULTS=100 makes them the 10,000 of a long run."""
CANCELS = 20 * TIMES
"""2,000 then."""


async def test_clients_that_come_and_go_leave_nothing_behind(here: SoakDaemon) -> None:
    """Connects, half requests, cancels: the next one is served, and another's stream is untouched."""
    row = await client_faults.clients_leave(here, CLIENTS)
    assert await what_stays(here, row) == []


async def test_three_models_and_room_for_two(here: SoakDaemon) -> None:
    """Requests with random cancels: whoever stays is served whole, however often models are exchanged."""
    row = await client_faults.clients_cancel(here, CANCELS)
    assert await what_stays(here, row) == []
