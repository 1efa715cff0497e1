# SPDX-License-Identifier: GPL-3.0-only
"""Measure what the workers of a daemon hold, again and again (proc(5), Linux).

Every process that the daemon has started is counted, one that just loads or ends too, and what those have
started. The daemon itself is not counted: `vram_budget_mb` is for models.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio
from soaking import procfs

PSS_EVERY = 5
"""The proportional set is measured once in so many times: the kernel walks all pages for it."""


class MemorySample(NamedTuple):
    """One measurement. MiB; `at` is the wall clock, as that of events.

    Attributes:
      rss_mb: resident sets, added: pages that two processes share count twice.
      pss_mb: proportional sets, added; None where they were not measured.
      by_model: resident sets by the model that a worker serves.
    """

    at: float
    rss_mb: float
    pss_mb: float | None
    by_model: dict[str, float]


def measure(daemon: int, *, proportional: bool = False) -> MemorySample:
    """Measure once. A process that ends meanwhile counts as nothing."""
    own = _command(daemon)
    pids = [pid for pid in procfs.family(daemon)[1:] if _command(pid) not in ([], own)]
    at = time.time()
    by_model: dict[str, float] = {}
    for pid in pids:
        words = _command(pid)
        if words:
            by_model[words[-1]] = by_model.get(words[-1], 0.0) + procfs.resident_mb(pid)
    pss_mb = sum(procfs.proportional_mb(pid) for pid in pids) if proportional else None
    return MemorySample(at, sum(by_model.values()), pss_mb, by_model)


def _command(pid: int) -> list[str]:
    """Return the words of its command line; none when it is gone.

    Between fork and exec a child has those of its parent, and shares its memory.
    """
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return text.decode(errors="replace").split("\0")[:-1]


async def measure_forever(daemon: int, every_s: float, samples: list[MemorySample]) -> None:
    """Add a measurement to `samples` every so many seconds, until cancelled."""
    while True:
        began = trio.current_time()
        whole = len(samples) % PSS_EVERY == 0
        samples.append(await trio.to_thread.run_sync(partial(measure, daemon, proportional=whole)))
        await trio.sleep_until(began + every_s)
