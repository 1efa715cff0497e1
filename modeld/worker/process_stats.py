# SPDX-License-Identifier: GPL-3.0-only
"""Read another process's progress and memory from the kernel.

Linux only (proc(5)); elsewhere, and for a process that is gone, the answers are None.
"""

from __future__ import annotations

import resource
from pathlib import Path

_MINFLT, _MAJFLT, _UTIME, _STIME, _RSS = 7, 9, 11, 12, 21
"""Fields of /proc/PID/stat, counted from the one behind the name."""

Pulse = tuple[str, ...]
"""Page faults, CPU time and resident set: of a process that works, one of them changes."""


def pulse_of(pid: int) -> Pulse | None:
    """Return numbers that change while the process computes or reads. Costs 20 us."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return tuple(fields[place] for place in (_MINFLT, _MAJFLT, _UTIME, _STIME, _RSS))


def own_bytes() -> int:
    """Return the resident set of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()


def anonymous_bytes(pid: int) -> int | None:
    """Return the memory a process holds that nobody can take back: all but the pages of files. Costs 30 us.

    None: it is gone, or going (its memory may still be on the way back).
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    sizes = [line.split()[1] for line in text.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(map(int, sizes)) * 1024 if sizes else None


def held_bytes(pid: int) -> int | None:
    """Return the memory it holds: its proportional set size, so that what two share counts once.

    The kernel walks all its pages for that, some 10 ms a GiB of small ones: not for the event loop.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    sizes = [line.split()[1] for line in text.splitlines() if line.startswith("Pss:")]
    return int(sizes[0]) * 1024 if sizes else None
