# SPDX-License-Identifier: GPL-3.0-only
"""Measure the CPU time of some processes, and what others on the machine used meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

NOISY = 0.05
"""Part of the cores that others may take before the figures are called noisy."""
BUSY_LOAD = 0.5
"""Load average above which something else is running."""
_TICKS = os.sysconf("SC_CLK_TCK")


class CpuUse(NamedTuple):
    """What was used between two moments; None where it cannot be known.

    Attributes:
      others: part of all cores that processes used which are not ours.
      watched_s: CPU seconds of the watched processes, all threads.
    """

    others: float | None
    watched_s: float | None


class CpuWatch:
    """Measures, from its making to `stop`, the CPU time of some processes, and of those that are not ours.

    Reads /proc, so it knows nothing on other systems than Linux. In a container /proc/stat may be the
    host's: then the neighbours' load is in it too, which is what matters.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._began = time.monotonic()
        self._busy = _busy_s()
        self._own = _process_s(os.getpid(), ended=True)
        self._watched = self._watched_s()

    def stop(self) -> CpuUse:
        """Return what was used since it was made."""
        busy = _busy_s()
        if busy is None or self._busy is None:
            return CpuUse(None, None)
        elapsed = time.monotonic() - self._began
        watched = self._watched_s() - self._watched
        own = _process_s(os.getpid(), ended=True) - self._own
        others = max(0.0, (busy - self._busy - watched - own) / (elapsed * (os.cpu_count() or 1)))
        return CpuUse(others, watched if self._pids else None)

    def _watched_s(self) -> float:
        return sum(_process_s(pid, ended=False) for pid in self._pids)


def verdict(uses: Iterable[CpuUse]) -> str:
    """Return how quiet the machine was, over all measurements."""
    others = [each.others for each in uses if each.others is not None]
    if not others:
        return "How quiet the machine was is not known on this system."
    told = f"Others used {median(others):.0%} of the cores (median), {max(others):.0%} at most"
    if median(others) > NOISY:
        return f"{told}: a NOISY machine. These figures are lower than they should be, and so may be ratios."
    return f"{told}: a quiet machine."


def load_average() -> list[float]:
    """Return the load averages of 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def machine() -> dict[str, object]:
    """Return what this is measured on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _busy_s() -> float | None:
    """Return the CPU seconds that all processes took since boot, stolen time included."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _process_s(pid: int, *, ended: bool) -> float:
    """Return the CPU seconds of a process and its children; `ended`: those that it waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return 0.0
    seconds = sum(int(field) for field in fields[11 : 15 if ended else 13]) / _TICKS
    if not ended:
        for task in tasks:
            with contextlib.suppress(OSError):
                for child in (task / "children").read_text().split():
                    seconds += _process_s(int(child), ended=False)
    return seconds
