# SPDX-License-Identifier: GPL-3.0-only
"""Name the files of the checkout and of the cache, and lock what several runs share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

from testctl_lib.terminal import say

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
STAMP = VENV / "testctl.json"
LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "requirements-dev.lock"

Command = list[str | Path]


def cache(*parts: str) -> Path:
    """Return a folder of the cache, made if need be."""
    base = os.environ.get("MODELD_CACHE")
    if base:
        path = Path(base).expanduser().absolute()
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "modeld"
    path = path.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(name: str) -> Generator[None]:
    """Let one testctl at a time work on `name`; says so when it has to wait."""
    with (cache("locks") / f"{name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"   another testctl works on {name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch(parent: Path) -> Generator[Path]:
    """A temporary folder on the same file system as `parent`, so that a rename out of it is atomic."""
    with tempfile.TemporaryDirectory(prefix=".part-", dir=parent) as folder:
        yield Path(folder)
