# SPDX-License-Identifier: GPL-3.0-only
"""What this machine, or the container around the daemon, has: cores and memory.

Sources: sched_getaffinity(2); cgroups(7), the v2 files `cpu.max` and `memory.max` of the own group
and its parents, and the v1 `memory.limit_in_bytes`; proc(5) for MemTotal.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 1 << 60
"""Kernels write a number near 2^63 for "no limit" in cgroup v1."""


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: its affinity, less a cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _cgroup_folders(root):
        quota = _read(group / "cpu.max").split()
        if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]) > 0:
            cores = min(cores, math.ceil(int(quota[0]) / int(quota[1])))
    return max(1, cores)


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory this process may use in bytes: MemTotal, or a cgroup's limit below it.

    None where the system does not tell.
    """
    limits: list[int] = []
    for line in _read(root / "proc/meminfo").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "MemTotal:" and words[1].isdigit():
            limits.append(int(words[1]) * 1024)
    for group in _cgroup_folders(root):
        limits += [
            int(text)
            for text in (_read(group / "memory.max").strip(), _read(group / "memory.limit_in_bytes").strip())
            if text.isdigit() and int(text) < _NO_LIMIT
        ]
    return min(limits) if limits else None


def _cgroup_folders(root: Path) -> Iterator[Path]:
    base = root / "sys/fs/cgroup"
    yield base
    yield base / "memory"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = base / "memory" if controllers else base
        for part in Path(path.strip("/")).parts:
            if part == "..":
                break
            folder /= part
            yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
