# SPDX-License-Identifier: GPL-3.0-only
"""The first command anyone runs: tools/testctl demo."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTCTL = [sys.executable, str(ROOT / "tools" / "testctl")]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real,
    pytest.mark.skipif(
        not (ROOT / ".venv" / "testctl.json").exists(),
        reason=".venv was not set up by testctl, and a test installs nothing",
    ),
]


def test_the_demo_streams_a_haiku_and_stops_cleanly() -> None:
    """It prints three lines of a real model, the state of the daemon, and its clean end."""
    done = subprocess.run([*TESTCTL, "demo"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    haiku = re.search(r"> Write a haiku.*?\nok wait for the model.*?\n(.*?)\n\n", done.stdout, re.DOTALL)
    assert haiku, done.stdout
    assert len(haiku[1].splitlines()) == 3, done.stdout
    assert "SmolLM2-135M-Instruct.Q4_0.gguf  ready" in done.stdout
    assert "ok stop the daemon exit code 0" in done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_kept_daemon_runs_until_it_is_interrupted() -> None:
    """`--keep` prints what to try; each of it works; Ctrl-C ends the daemon and the program with 0."""
    with subprocess.Popen([*TESTCTL, "demo", "--keep"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            commands = []
            for line in process.stdout:
                if line.strip().startswith("curl "):
                    commands.append(line.strip())
                if line.strip().startswith("open "):
                    break
            for command in commands:
                done = subprocess.run(
                    ["/bin/sh", "-c", command.replace("curl ", "curl --fail ", 1)],
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=120,
                )
                assert done.returncode == 0, command + done.stderr
                assert done.stdout
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
        assert len(commands) == 4
        assert "ok stop the daemon exit code 0" in rest
    assert process.returncode == 0
