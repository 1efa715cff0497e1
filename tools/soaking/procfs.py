# SPDX-License-Identifier: GPL-3.0-only
"""Read what the kernel knows of other processes (proc(5)): descriptors, threads, memory, CPU. Linux."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Return its child processes, zombies too; none when it is gone."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found


def family(pid: int) -> list[int]:
    """Return the process and all that descend from it."""
    return [pid, *(one for child in children(pid) for one in family(child))]


def descriptors(pid: int) -> int:
    """Return how many files it has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def first_free_descriptor(pid: int) -> int:
    """Return the number that the next file it opens will get."""
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def threads(pid: int) -> int:
    """Return how many threads it has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def resident_mb(pid: int) -> float:
    """Return its resident set, MiB; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def proportional_mb(pid: int) -> float:
    """Return its proportional set, MiB: what processes share counts once among them; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    sizes = [line.split()[1] for line in text.splitlines() if line.startswith("Pss:")]
    return int(sizes[0]) / 1024 if sizes else 0.0


def address_space(pid: int) -> int:
    """Return its virtual size, bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time it has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def maps(pid: int, name: str) -> bool:
    """Whether it has a file whose path holds `name` mapped into its memory."""
    try:
        return name in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return False


def state(pid: int) -> str:
    """Return the letter of its state (T: stopped), X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


def is_gone(pid: int) -> bool:
    """Whether there is no such process, or only its zombie."""
    return state(pid) in "ZX"
