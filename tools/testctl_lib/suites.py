# SPDX-License-Identifier: GPL-3.0-only
"""Run the tests by lane, marker or folder, and start the benchmark and the soak."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from testctl_lib.environment import ensure_installed, ensure_ready
from testctl_lib.lint import lint, run_lint
from testctl_lib.packages import python_of
from testctl_lib.paths import ROOT, VENV, cache, locked, scratch
from testctl_lib.steps import ToolError, run_step
from testctl_lib.terminal import heading, say

SUITES: Mapping[str, tuple[str, ...]] = {
    "all": ("tests",),
    "fast": ("tests", "-m", "fast"),
    "extended": ("tests", "-m", "extended"),
    "unit": ("tests", "-m", "not real and not e2e"),
    "real": ("tests", "-m", "real"),
    "e2e": ("tests", "-m", "e2e"),
}
"""Suites by marker; `tests/conftest.py` marks what is fast. Any folder of tests/ is a suite too."""

NO_TESTS = 5
"""Pytest's exit code when no test was selected."""


def suite_arguments(suite: str) -> list[str]:
    """Return pytest's arguments for a suite.

    Raises:
      ToolError: there is none of that name.
    """
    if suite in SUITES:
        return list(SUITES[suite])
    tests = ROOT / "tests"
    folders = sorted({path.relative_to(tests).parts[0] for path in tests.rglob("*/test_*.py")})
    if suite in folders:
        return [f"tests/{suite}"]
    names = sorted({"lint", *SUITES, *folders})
    raise ToolError(f"there is no suite '{suite}'; there are: {', '.join(names)}")


def test(arguments: argparse.Namespace) -> int:
    """Run checks and tests; see `testctl test --help`. Pytest's summary is the last that is printed."""
    suite = arguments.suite
    if suite == "lint":
        return lint(arguments)
    command = [python_of(VENV), "-m", "pytest", *suite_arguments(suite), *arguments.rest]
    heading("set up")
    if suite == "fast":  # It needs neither models nor programs.
        ensure_installed()
        env = dict(os.environ)
    else:
        env = ensure_ready()
        analyze = ensure_systemd_analyze()
        if analyze is None:
            say("   no systemd-analyze here: the tests of the systemd units are skipped")
        else:
            env["PATH"] = f"{env.get('PATH', '')}{os.pathsep}{analyze.parent}"
    lint_result = 0
    if suite == "all":
        heading("lint")
        lint_result = run_lint()
    heading(f"test {suite}")
    result = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    if result == NO_TESTS and suite == "extended" and not arguments.rest:
        say("no test is marked `extended`")
        result = 0
    return result or lint_result


def measure(arguments: argparse.Namespace) -> int:
    """Run the benchmark or the soak with its own options; see `testctl bench --help`."""
    program = ROOT / "tools" / f"{arguments.program}.py"
    command = [python_of(VENV), program, *arguments.rest]
    return subprocess.run(command, cwd=ROOT, env=ensure_ready(), check=False).returncode


def ensure_systemd_analyze() -> Path | None:
    """Return a working systemd-analyze, or None when this system cannot have one.

    Where it is missing, Debian's package is unpacked into the cache and never installed: its install
    scripts would set up a service manager on this machine.
    """
    found = shutil.which("systemd-analyze")
    if found:
        return Path(found)
    folder = cache("systemd")
    program = folder / "bin" / "systemd-analyze"
    if program.exists():
        return program
    dpkg = shutil.which("dpkg-deb")
    if dpkg is None or shutil.which("apt-get") is None:
        return None
    with locked("systemd"), scratch(folder) as part:
        download = ["apt-get", "-y", "--no-install-recommends", "--download-only", "--reinstall"]
        download += ["-o", f"Dir::Cache::archives={part}", "-o", "Debug::NoLocking=1", "install", "systemd"]
        (part / "partial").mkdir()
        try:
            run_step("fetch Debian's systemd package", download)
        except ToolError:
            if os.geteuid() != 0:
                raise
            run_step("update Debian's package lists", ["apt-get", "update"])
            run_step("fetch Debian's systemd package again", download)
        tree = part / "tree"
        for package in sorted(part.glob("*.deb")):
            subprocess.run([dpkg, "-x", str(package), str(tree)], check=True)
        shutil.rmtree(folder / "tree", ignore_errors=True)
        tree.rename(folder / "tree")
    tree = folder / "tree"
    binary = next(path for path in (tree / "usr/bin", tree / "bin") if (path / "systemd-analyze").exists())
    libraries = sorted({str(path.parent) for path in tree.rglob("lib*.so*") if "share" not in path.parts})
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        "#!/bin/sh\n"
        f"export LD_LIBRARY_PATH={shlex.quote(':'.join(libraries))}\n"
        'SYSTEMD_UNIT_PATH="${SYSTEMD_UNIT_PATH:+${SYSTEMD_UNIT_PATH%:}:}"'
        f"{shlex.quote(str(tree / 'lib/systemd/system'))}:\n"
        "export SYSTEMD_UNIT_PATH\n"
        f'exec {shlex.quote(str(binary / "systemd-analyze"))} "$@"\n'
    )
    program.chmod(0o755)
    return program
