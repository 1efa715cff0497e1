# SPDX-License-Identifier: GPL-3.0-only
"""Check what this machine has, and name the command that fixes what it lacks."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from typing import NamedTuple

from testctl_lib.environment import stamp, stamp_facts
from testctl_lib.llama_build import compiler, recipe
from testctl_lib.models import MODEL_MADE, MODEL_SOURCE, model_folder
from testctl_lib.packages import install_command
from testctl_lib.paths import VENV, cache
from testctl_lib.steps import ToolError
from testctl_lib.terminal import coloured, say


class Finding(NamedTuple):
    """One thing that was checked."""

    name: str
    state: str
    """`ok`, `missing` (it is required) or `note`."""
    detail: str
    fix: str = ""


def examine() -> Iterator[Finding]:
    """Check everything that modeld's setup and tests need."""
    yield Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield from examine_tools()
    yield from examine_cache()
    yield from examine_machine()


def examine_tools() -> Iterator[Finding]:
    """Check the programs that are called."""
    for name, found, package in (
        ("C compiler", compiler(), "build-essential"),
        ("C++ compiler", compiler("c++"), "build-essential"),
        ("make or ninja", shutil.which("make") or shutil.which("ninja"), "make"),
        ("venv module", "yes" if find_module("ensurepip") else None, "python3-venv"),
    ):
        state = "ok" if found else "missing"
        yield Finding(name, state, found or "not found", "" if found else install_command(package))
    cmake = shutil.which("cmake")
    yield Finding("cmake", "ok" if cmake else "note", cmake or "not found; the build brings its own")
    node = shutil.which("node")
    yield Finding("Node", "ok" if node else "note", node or "not found; pyright brings its own")
    analyze = shutil.which("systemd-analyze")
    apt = shutil.which("apt-get")
    absent = "not found; `testctl test` unpacks Debian's into the cache" if apt else "none for this system"
    yield Finding("systemd-analyze", "ok" if analyze else "note", analyze or absent)


def find_module(name: str) -> bool:
    """Return whether this Python has a module, without importing it."""
    return importlib.util.find_spec(name) is not None


def examine_cache() -> Iterator[Finding]:
    """Check what an earlier run left."""
    try:
        how = recipe(stamp().get("backend", "cpu"))
    except ToolError as error:
        yield Finding("llama.cpp wheel", "missing", str(error), install_command("build-essential"))
    else:
        yield Finding("AMX", "ok" if how.amx in {"absent", "works"} else "note", how.amx)
        built = any(cache("wheels", how.key).glob("*.whl"))
        detail = how.key if built else f"{how.key} is not built yet (about ten minutes)"
        fix = "tools/testctl install"
        yield Finding("llama.cpp wheel", "ok" if built else "note", detail, "" if built else fix)
        ready = stamp() == stamp_facts(how)
        detail = str(VENV) if ready else f"{VENV} is missing or out of date"
        yield Finding("virtual environment", "ok" if ready else "note", detail, "" if ready else fix)
    folder = model_folder()
    have = [name for name in (MODEL_SOURCE, *MODEL_MADE) if (folder / name).exists()]
    detail = f"{len(have)} of {1 + len(MODEL_MADE)} files in {folder}"
    complete = len(have) == 1 + len(MODEL_MADE)
    yield Finding(
        "test models", "ok" if complete else "note", detail, "" if complete else "tools/testctl install"
    )


def examine_machine() -> Iterator[Finding]:
    """Check disk, memory and network of this machine."""
    free = shutil.disk_usage(cache()).free / 2**30
    yield Finding(
        "disk", "ok" if free > 4 else "missing", f"{free:.1f} GiB free in {cache()}, 4 needed",
        "" if free > 4 else "free some space, or set MODELD_CACHE to a larger disk",
    )  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding("memory", "ok" if memory > 3 else "note", f"{memory:.1f} GiB, 3 are comfortable")
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", 8080)) == 0
    detail = "in use; start with --addr 127.0.0.1:PORT" if taken else "free (modeld's default)"
    yield Finding("port 8080", "note" if taken else "ok", detail)


def doctor(_arguments: argparse.Namespace) -> int:
    """Say what is missing and how to fix it; see `testctl doctor --help`."""
    findings = list(examine())
    width = max(len(finding.name) for finding in findings)
    codes = {"ok": "32", "note": "33", "missing": "31"}
    for name, state, detail, fix in findings:
        say(f"{coloured(codes[state], state.ljust(7))} {name.ljust(width)}  {detail}")
        if fix:
            say(f"{' ' * (9 + width)} fix it with: {fix}")
    missing = [finding.name for finding in findings if finding.state == "missing"]
    say(f"missing: {', '.join(missing)}" if missing else "nothing that is required is missing")
    return 1 if missing else 0
