# SPDX-License-Identifier: GPL-3.0-only
"""Read the cores, memory and names of this machine or of the container around the daemon.

Sources: sched_getaffinity(2); cgroups(7), the v2 files `cpu.max`, `memory.max`, `memory.current` and
`memory.stat` of the own group and its parents, and the v1 `memory.limit_in_bytes` and
`memory.usage_in_bytes`; proc(5) for MemTotal and MemAvailable; hosts(5).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 1 << 60
"""Kernels write a number near 2^63 for "no limit" in cgroup v1."""
_MEMINFO = ("MemTotal:", "MemAvailable:")
_RECLAIMABLE = ("inactive_file", "active_file")
"""Of `memory.stat`; v1 has them with `total_` for the groups below, too."""


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
    return memory_now(root)[0]


def memory_now(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Return the memory this process may use, and what can be had of it without swapping, in bytes.

    The first is `memory_bytes`. The second counts page cache: MemAvailable, or what is left below a cgroup's
    limit, that less what is charged to the group and cannot be taken back. None where the system does not
    tell.
    """
    told = _pairs(root / "proc/meminfo")
    totals, left = ([int(told[name]) * 1024] if told.get(name, "").isdigit() else [] for name in _MEMINFO)
    for group in _cgroup_folders(root):
        limit = _limit(group)
        if limit is not None:
            totals.append(limit)
            left.append(max(0, limit - _charged(group)))
    return min(totals, default=None), min(left, default=None)


def own_names(host_name: str, root: Path = Path("/")) -> frozenset[str]:
    """Return the names of this machine: `host_name`, what /etc/hosts calls it, and its `.local` name.

    DNS is not asked for the full name: it may hang, and whoever answers it would choose who is trusted.
    """
    name = host_name.lower()
    names = {name, f"{name.partition('.')[0]}.local"} if name else set[str]()
    for line in _read(root / "etc/hosts").splitlines():
        listed = line.partition("#")[0].lower().split()[1:]
        if name in listed:
            names.update(listed)
    return frozenset(names)


def _limit(group: Path) -> int | None:
    """Return the limit of one group, bytes."""
    texts = (_read(group / "memory.max").strip(), _read(group / "memory.limit_in_bytes").strip())
    limits = [int(text) for text in texts if text.isdigit() and int(text) < _NO_LIMIT]
    return min(limits, default=None)


def _charged(group: Path) -> int:
    """Return the bytes of one group and those below it that cannot be taken back at once."""
    text = _read(group / "memory.current").strip() or _read(group / "memory.usage_in_bytes").strip()
    stat = _pairs(group / "memory.stat")
    names = _RECLAIMABLE if "total_inactive_file" not in stat else tuple(f"total_{it}" for it in _RECLAIMABLE)
    files = sum(int(stat[name]) for name in names if stat.get(name, "").isdigit())
    return max(0, (int(text) if text.isdigit() else 0) - files)


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


def _pairs(path: Path) -> dict[str, str]:
    """Return the first two words of each line that has them."""
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0]: words[1] for words in lines if len(words) > 1}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
