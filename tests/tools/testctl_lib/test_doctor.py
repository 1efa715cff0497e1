# SPDX-License-Identifier: GPL-3.0-only
"""`testctl doctor` as a program: its findings and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

PROGRAM = Path(__file__).resolve().parents[3] / "tools" / "testctl"


def test_doctor_ends_with_a_verdict(own_cache: Path) -> None:
    """It looks at everything, names a remedy for what is not there, and passes where tests can run."""
    done = subprocess.run([sys.executable, PROGRAM, "doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not built yet" in done.stdout
    assert "fix it with: tools/testctl install" in done.stdout
    assert done.stdout.endswith("nothing that is required is missing\n")
    assert own_cache.exists()


def test_doctor_without_a_compiler_says_how_to_get_one(own_cache: Path, tmp_path: Path) -> None:
    """What is required and missing makes it fail, with the command that mends it."""
    env = {**os.environ, "PATH": str(tmp_path)}
    command = [sys.executable, PROGRAM, "doctor"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "missing C++ compiler" in done.stdout
    assert "build-essential" in done.stdout
    assert own_cache.exists()
