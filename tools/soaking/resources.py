# SPDX-License-Identifier: GPL-3.0-only
"""Measure what the daemon holds: that it is released when the daemon is idle, and does not grow over time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import trio

from soaking import procfs

_WARM = 0.2
"""Of the run, from its beginning: caches fill."""
_GROWTH = 0.05
_GROWTH_MB = 4.0
"""A median of the last third may be so much above that of the first one: a share, and MiB."""


class Sample(NamedTuple):
    """One measurement. MiB; `seconds` since the first. `idle`: no client asked, one model was loaded."""

    seconds: float
    daemon_rss_mb: float
    daemon_pss_mb: float
    children_rss_mb: float
    all_pss_mb: float
    children: int
    descriptors: int
    threads: int
    idle: bool = False


class Sampler:
    """Measures a daemon every so many seconds."""

    def __init__(self, pid: int, every_s: float) -> None:
        self.samples: list[Sample] = []
        self._pid = pid
        self._every_s = every_s
        self._began = time.perf_counter()

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            await self.sample()
            await trio.sleep(self._every_s)

    async def sample(self, *, idle: bool = False) -> Sample:
        """Measure once."""
        sample = await trio.to_thread.run_sync(self._sample, idle)
        self.samples.append(sample)
        return sample

    def _sample(self, idle: bool) -> Sample:
        pid, *others = procfs.family(self._pid)
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
            idle=idle,
        )


def growth(samples: Sequence[Sample]) -> list[str]:
    """Return what grew over the run, in the idle samples after the first fifth."""
    end = samples[-1].seconds
    idle_samples = [sample for sample in samples if sample.idle and sample.seconds > _WARM * end]
    third = len(idle_samples) // 3
    if third < 2:
        return []
    found: list[str] = []
    for name, spare in (
        ("daemon_rss_mb", _GROWTH_MB),
        ("daemon_pss_mb", _GROWTH_MB),
        ("descriptors", 1),
        ("threads", 8),
    ):
        first = median(float(getattr(sample, name)) for sample in idle_samples[:third])
        last = median(float(getattr(sample, name)) for sample in idle_samples[-third:])
        if last > first * (1 + _GROWTH) + spare:
            found.append(
                f"{name} grew from {first:.1f} to {last:.1f} (medians when idle, first and last third)"
            )
    return found


_THREADS_SPARE = 8
"""Trio keeps threads that had work for ten seconds."""
_FILES_A_MODEL = 3
"""A socket, a pipe, and a handle of the process."""
_MIB = 0.01
"""What rounding may add up to."""


class Resources(NamedTuple):
    """What the daemon holds at a moment."""

    descriptors: int
    threads: int
    loaded: int


def resources_of(pid: int, status: Mapping[str, Any]) -> Resources:
    """Return what the daemon holds now."""
    return Resources(procfs.descriptors(pid), procfs.threads(pid), len(_loaded(status)))


def _loaded(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in status["instances"] if row["state"] == "ready"]


def still_active(status: Mapping[str, Any], children: Sequence[int]) -> list[str]:
    """Return what still goes on, or is counted although it is over; a sentence each."""
    found: list[str] = []
    rows, loaded = status["instances"], _loaded(status)
    inside = status["inflight_total"] + status["queued_total"]
    if inside:
        found.append(f"{inside} requests are inside, and nobody asks")
    unsettled = [row["model_id"] for row in rows if row["state"] in {"loading", "draining", "queued"}]
    if unsettled:
        found.append(f"neither ready nor stopped: {', '.join(unsettled)}")
    sum_mb, ledger_mb = sum(row["est_vram_mb"] for row in loaded), status["used_est_mb"]
    if abs(sum_mb - ledger_mb) > _MIB:
        found.append(f"the ledger holds {ledger_mb:.0f} MiB, the loaded models {sum_mb:.0f}")
    if status["reserved_mb"] or status["unaccounted_mb"]:
        found.append("the ledger has memory of loads that are over")
    if status["budget_mb"] and ledger_mb > status["budget_mb"]:
        found.append(f"{ledger_mb:.0f} MiB are held of a budget of {status['budget_mb']:.0f}")
    if len(children) != len(loaded) or {row["pid"] for row in loaded} != set(children):
        found.append(f"{len(children)} processes for {len(loaded)} models")
    return found


def not_released(before: Resources, now: Resources) -> list[str]:
    """Return what is more than it was, beyond what loaded models need."""
    found: list[str] = []
    files = before.descriptors + _FILES_A_MODEL * (now.loaded - before.loaded)
    if now.descriptors > files + 1:  # The last connection may not be closed yet.
        found.append(f"{now.descriptors} descriptors are open, {files} were")
    if now.threads > before.threads + _THREADS_SPARE:
        found.append(f"{now.threads} threads run, {before.threads} did")
    return found
