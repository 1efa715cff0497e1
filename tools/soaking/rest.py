# SPDX-License-Identifier: GPL-3.0-only
"""What must be true of a daemon when nothing goes on, judged from /status and from what the kernel knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from soaking import procfs

_THREADS_SPARE = 8
"""Trio keeps threads that had work for ten seconds."""
_FILES_A_MODEL = 3
"""A socket, a pipe, and a handle of the process."""
_MIB = 0.01
"""What rounding may add up to."""


class Held(NamedTuple):
    """What the daemon holds when it is at rest."""

    descriptors: int
    threads: int
    loaded: int


def held(pid: int, status: Mapping[str, Any]) -> Held:
    """Look at what it holds."""
    return Held(procfs.descriptors(pid), procfs.threads(pid), len(_loaded(status)))


def _loaded(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in status["instances"] if row["state"] == "ready"]


def moving(status: Mapping[str, Any], children: Sequence[int]) -> list[str]:
    """Return what still goes on, or is counted although it is over; a sentence each."""
    found: list[str] = []
    rows, loaded = status["instances"], _loaded(status)
    inside = status["inflight_total"] + status["queued_total"]
    if inside:
        found.append(f"{inside} requests are inside, and nobody asks")
    restless = [row["model_id"] for row in rows if row["state"] in {"loading", "draining", "queued"}]
    if restless:
        found.append(f"{', '.join(restless)} neither rest nor go")
    sum_mb, told_mb = sum(row["est_vram_mb"] for row in loaded), status["used_est_mb"]
    if abs(sum_mb - told_mb) > _MIB:
        found.append(f"the ledger holds {told_mb:.0f} MiB, the loaded models {sum_mb:.0f}")
    if status["reserved_mb"] or status["unaccounted_mb"]:
        found.append("the ledger has memory of loads that are over")
    if status["budget_mb"] and told_mb > status["budget_mb"]:
        found.append(f"{told_mb:.0f} MiB are held of a budget of {status['budget_mb']:.0f}")
    if len(children) != len(loaded) or {row["pid"] for row in loaded} != set(children):
        found.append(f"{len(children)} processes for {len(loaded)} models")
    return found


def not_back(before: Held, now: Held) -> list[str]:
    """Return what is more than it was, beyond what loaded models need."""
    found: list[str] = []
    files = before.descriptors + _FILES_A_MODEL * (now.loaded - before.loaded)
    if now.descriptors > files + 1:  # The last connection may not be closed yet.
        found.append(f"{now.descriptors} descriptors are open, {files} were")
    if now.threads > before.threads + _THREADS_SPARE:
        found.append(f"{now.threads} threads run, {before.threads} did")
    return found
