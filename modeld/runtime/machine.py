# SPDX-License-Identifier: GPL-3.0-only
"""The memory of this machine at this moment, and the budget that `auto` makes of it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from modeld.config.machine import memory_bytes
from modeld.core.models import MIB

AUTO_SHARE = 0.9
"""`auto` leaves a tenth of what is available to everybody else."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes, within the cgroup's limit where there is one."""

    total: int
    available: int


def memory_of_machine(meminfo: Path = Path("/proc/meminfo")) -> Memory:
    """Read what the machine has and what is available (proc(5), MemAvailable). Zeros: not told.

    ggml's CPU device reports all memory as free, so it is not asked.
    """
    try:
        text = meminfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    available = int(found[1]) * 1024 if found else 0
    total = memory_bytes() or 0
    return Memory(total=total, available=min(available, total))


def budget_bytes(setting_mb: int | None) -> int | None:
    """Return the budget in bytes for the setting: None for unlimited (0), a share of memory for `auto`."""
    if setting_mb is None:
        return int(memory_of_machine().available * AUTO_SHARE) // MIB * MIB
    return setting_mb * MIB or None


def sizing_room(budget: int | None, margin: int) -> int | None:
    """Return the bytes for all models together, by which sizes that are `auto` are chosen.

    The budget (None: unlimited) less the margin; without a budget, what the machine has: its memory
    does not change, what is available does. None: the system does not tell.
    """
    if budget is None:
        return int(memory_of_machine().total * AUTO_SHARE) or None
    return max(0, budget - margin)
