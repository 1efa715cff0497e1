# SPDX-License-Identifier: GPL-3.0-only
"""What the daemon holds over time, and whether it grows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import trio

from soaking import procfs
from soaking.world import World

_WARM = 0.2
"""Of the run, from its beginning: caches fill."""
_GROWTH = 0.05
_GROWTH_MB = 4.0
"""A median of the last third may be so much above that of the first one: a share, and MiB."""


class Sample(NamedTuple):
    """One look. MiB; `seconds` since the first one. `rest`: nothing but the bystander was loaded or asked."""

    seconds: float
    daemon_rss_mb: float
    daemon_pss_mb: float
    children_rss_mb: float
    all_pss_mb: float
    children: int
    descriptors: int
    threads: int
    rest: bool = False


class Sampler:
    """Looks at a daemon every so many seconds."""

    def __init__(self, world: World, every_s: float) -> None:
        self.samples: list[Sample] = []
        self._world = world
        self._every_s = every_s
        self._began = time.perf_counter()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await trio.sleep(self._every_s)

    async def look(self, *, rest: bool = False) -> Sample:
        """Look once."""
        sample = await trio.to_thread.run_sync(self._look, rest)
        self.samples.append(sample)
        return sample

    def _look(self, rest: bool) -> Sample:
        pid, *others = procfs.family(self._world.pid)
        own = procfs.proportional_mb(pid)
        return Sample(
            seconds=time.perf_counter() - self._began,
            daemon_rss_mb=procfs.resident_mb(pid),
            daemon_pss_mb=own,
            children_rss_mb=sum(procfs.resident_mb(other) for other in others),
            all_pss_mb=own + sum(procfs.proportional_mb(other) for other in others),
            children=len(others),
            descriptors=procfs.descriptors(pid),
            threads=procfs.threads(pid),
            rest=rest,
        )


def growth(samples: Sequence[Sample]) -> list[str]:
    """Return what grew over the run, of what was seen at rest after the first fifth."""
    end = samples[-1].seconds
    rests = [sample for sample in samples if sample.rest and sample.seconds > _WARM * end]
    third = len(rests) // 3
    if third < 2:
        return []
    found: list[str] = []
    for name, spare in (
        ("daemon_rss_mb", _GROWTH_MB),
        ("daemon_pss_mb", _GROWTH_MB),
        ("descriptors", 1),
        ("threads", 8),
    ):
        first = median(float(getattr(sample, name)) for sample in rests[:third])
        last = median(float(getattr(sample, name)) for sample in rests[-third:])
        if last > first * (1 + _GROWTH) + spare:
            found.append(
                f"{name} grew from {first:.1f} to {last:.1f} (medians at rest, first and last third)"
            )
    return found
