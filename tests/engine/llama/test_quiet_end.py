# SPDX-License-Identifier: GPL-3.0-only
"""A run of the tests ends without warnings of Python's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

HERE = Path(__file__).parent


def test_files_that_llama_cpp_leaves_open_are_closed():
    """Python tells at its end of what was never closed, after everything else."""
    one = f"{HERE / 'sampling' / 'test_sampler.py'}::test_greedy_takes_the_token_that_the_chain_takes"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", one]
    run = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[2], check=False)
    assert run.returncode == 0, run.stdout
    assert "unclosed" not in run.stderr
