# SPDX-License-Identifier: GPL-3.0-only
"""Confine a child process: tie it to the daemon, and limit its resources."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import sys
from pathlib import Path

OOM_SCORE_ADJ = 500
"""Where memory runs out, the kernel takes a worker before the daemon (proc_pid_oom_score_adj(5))."""
_PR_SET_PDEATHSIG = 1


def die_with_parent(daemon: int) -> bool:
    """Let the kernel kill this process when the daemon's main thread ends, also while it is stopped.

    Returns: False if the daemon ended before that. `daemon` is its process id, 0 for one that is not tied.
    """
    if not daemon or sys.platform != "linux":
        return True
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == daemon


def become_oom_victim() -> None:
    """Be the first to go where memory is short, and ignore SIGTERM.

    A stop is the daemon's to decide: whoever signals a whole group (a service manager, a shell)
    would end streams that it still drains.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ), encoding="ascii")


def disable_core_dumps() -> None:
    """Tell where a crash was, and leave no core file of a model's size."""
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        # 1 where that is allowed: the kernel starts a collector of core dumps for 0, and not for 1.
        resource.setrlimit(resource.RLIMIT_CORE, (hard if hard == 0 else 1, hard))
    faulthandler.enable()


def limit_resources(*, memory: int, cpu_s: int) -> None:
    """Bound the memory that this process may write to (bytes), and its CPU time. No file may grow."""
    for name, value in (("RLIMIT_DATA", memory), ("RLIMIT_CPU", cpu_s), ("RLIMIT_FSIZE", 0)):
        kind = getattr(resource, name, None)
        if kind is not None:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (value, value))
