# SPDX-License-Identifier: GPL-3.0-only
"""One daemon for all faults that a daemon lives through: that it still serves is part of what is tested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
from soaking.daemon import SoakDaemon, soak_daemon
from support.fault_cases import BUDGET


@pytest.fixture(scope="package")
def here() -> Iterator[SoakDaemon]:
    """A daemon with a bystander that is loaded; in the end it has to stop with 0."""
    with soak_daemon(*BUDGET) as made:
        trio.run(made.start)
        yield made
        assert made.stop() == 0, made.tail()
