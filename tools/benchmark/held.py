# SPDX-License-Identifier: GPL-3.0-only
"""What the workers of a daemon hold, looked at all the while (proc(5), Linux).

Counted is every process that the daemon has started and that there is at the moment, also one that just
loads or ends, and what those have started. Not counted is the daemon itself: `vram_budget_mb` is for models.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio
from soaking import procfs

PSS_EVERY = 5
"""The proportional set is looked at once in so many looks: the kernel walks all pages for it."""


class Look(NamedTuple):
    """One look. MiB; `at` is the wall clock, as that of events.

    Attributes:
      rss_mb: resident sets, added: pages that two processes share count twice.
      pss_mb: proportional sets, added; None where they were not looked at.
      by_model: resident sets by the model that a worker serves.
    """

    at: float
    rss_mb: float
    pss_mb: float | None
    by_model: dict[str, float]


def look(daemon: int, *, proportional: bool = False) -> Look:
    """Look once. A process that goes meanwhile counts as nothing."""
    own = _command(daemon)
    pids = [pid for pid in procfs.family(daemon)[1:] if _command(pid) not in ([], own)]
    at = time.time()
    by_model: dict[str, float] = {}
    for pid in pids:
        words = _command(pid)
        if words:
            by_model[words[-1]] = by_model.get(words[-1], 0.0) + procfs.resident_mb(pid)
    pss_mb = sum(procfs.proportional_mb(pid) for pid in pids) if proportional else None
    return Look(at, sum(by_model.values()), pss_mb, by_model)


def _command(pid: int) -> list[str]:
    """Return the words of its command line; none when it is gone.

    Between fork and exec a child has those of its parent, and shares its memory.
    """
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return text.decode(errors="replace").split("\0")[:-1]


class Looker:
    """Looks every so many seconds, until cancelled."""

    def __init__(self, daemon: int, every_s: float) -> None:
        self.looks: list[Look] = []
        self._daemon = daemon
        self._every_s = every_s

    async def run(self) -> None:
        """Look again and again. Never returns."""
        while True:
            began = trio.current_time()
            whole = len(self.looks) % PSS_EVERY == 0
            found = await trio.to_thread.run_sync(partial(look, self._daemon, proportional=whole))
            self.looks.append(found)
            await trio.sleep_until(began + self._every_s)
