# SPDX-License-Identifier: GPL-3.0-only
"""How often faults are played: a part of them in a usual run, all of them and more with MODELD_FAULTS=N."""

from __future__ import annotations

import os
from collections.abc import Iterable

from soaking.daemon import SoakDaemon
from soaking.results import FaultResult

TIMES = int(os.environ.get("MODELD_FAULTS", "1"))
"""How many times as often as usual; docs/testing.md."""
BUDGET = ("--vram-budget-mb", "900")
"""Room for the bystander and two more models."""

Case = tuple[str, str]


def cases(usual: Iterable[Case], everything: Iterable[Case]) -> list[Case]:
    """Return what is played: the usual cases, or all that there are."""
    return list(everything) if TIMES > 1 else list(usual)


async def what_stays(here: SoakDaemon, row: FaultResult) -> list[str]:
    """Return who felt the fault that should not have, and what is not back where it was."""
    return [*row.complaints, *await here.idle_problems()]
