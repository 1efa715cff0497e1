# SPDX-License-Identifier: GPL-3.0-only
"""What tests of footprints share: a dry run to the end, and what a process really takes."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import trio

from modeld.domain.model import DryRun, LoadOptions
from modeld.engine.protocol import LoadSpec
from modeld.errors import Problem
from modeld.worker.oneshot import run_dry_run
from modeld.worker.spawn import child_environment

PROGRAM = Path(__file__).parent / "measure_worker.py"
PATIENCE_S = 60.0
"""A machine that is busy with other tests may take long; the daemon itself waits 5 s."""


_PR_SET_THP_DISABLE = 41


def without_huge_pages() -> None:
    """Have this process and its children, from now on, get no huge pages (prctl(2)); Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def dry_run_of(
    path: Path, options: LoadOptions | None = None, within_s: float = PATIENCE_S
) -> DryRun | Problem:
    """Ask a child process what a model takes."""
    spec = LoadSpec(model_id=path.name, path=str(path), options=options or LoadOptions())
    return trio.run(run_dry_run, spec, within_s)


def certain_bytes(path: Path, options: LoadOptions | None = None) -> DryRun:
    """The same of a file that is sound."""
    answer = dry_run_of(path, options)
    assert isinstance(answer, DryRun), answer
    return answer


def measured_bytes(path: Path, options: LoadOptions) -> dict[str, dict[str, int]]:
    """What a process holds that loads the model and fills its context; see `support.measure_worker`."""
    arguments = [sys.executable, "-P", "-S", str(PROGRAM), str(path), msgspec.json.encode(options).decode()]
    env = child_environment(os.environ)
    done = subprocess.run(arguments, check=True, capture_output=True, timeout=300, env=env)
    return json.loads(done.stdout.splitlines()[-1])
