# SPDX-License-Identifier: GPL-3.0-only
"""What the kernel knows of processes: children, descriptors, states. Linux only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def children_of(pid: int | None = None) -> list[int]:
    """Return the child processes, zombies too."""
    tasks = Path(f"/proc/{os.getpid() if pid is None else pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def descriptors_of(pid: int | None = None) -> dict[int, str]:
    """Return the open descriptors, and what they are."""
    folder = Path(f"/proc/{os.getpid() if pid is None else pid}/fd")
    found = {}
    for entry in folder.iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:  # The one that read the folder.
            continue
    return found


def poll(found: Callable[[], bool], patience_s: float = 20.0) -> None:
    """Wait until something holds that nobody tells of. Raises: AssertionError."""
    until = time.monotonic() + patience_s
    while not found():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)  # another process does it, and tells nobody


def is_gone(pid: int) -> bool:
    """Whether there is no such process, or only its zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def ignores(pid: int, number: int) -> bool:
    """Whether the process ignores this signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (number - 1) & 1)
