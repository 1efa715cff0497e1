# SPDX-License-Identifier: GPL-3.0-only
"""`--watch`: redrawn in place on a terminal, one after the other in a pipe, through a restart."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from support.cli_runner import fake_daemon
from support.terminal import clean_environment, terminal

pytestmark = pytest.mark.e2e

CLEAR = "\x1b[?1049h"
BACK = "\x1b[?1049l"


def infer(path: str) -> None:
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=path), timeout=60) as http:
        assert http.post("http://x/infer", json={"model": "alpha", "prompt": "Hi"}).status_code == 200


def test_a_terminal_is_redrawn_in_place_through_a_restart(tmp_path: Path) -> None:
    """Changes appear, an outage and its end are told, Ctrl-C ends it with 0 and leaves the last picture."""
    path = str(tmp_path / "s")
    flags = ("--addr", f"unix:{path}")
    with fake_daemon(*flags) as first:
        with terminal("ps", "--watch", "0.1", *flags) as window:
            at = window.wait_for("no model is loaded")
            assert CLEAR in window.seen
            infer(path)
            at = window.wait_for(r"alpha +ready", after=at)
            assert first.stop() == 0
            at = window.wait_for(rf"unix:{path} does not answer since \d\d:\d\d:\d\d \(", after=at)
            window.wait_for(r"alpha +ready", after=at)  # What was known last stays in sight.
            with fake_daemon(*flags):
                at = window.wait_for("; it did not answer from ", after=at)
                at = window.wait_for("no model is loaded", after=at)
                window.interrupt()
                assert window.end() == 0
        tail = window.seen.rpartition(BACK)[2]
        assert "no model is loaded" in tail
        assert "Traceback" not in window.text


def test_sigterm_puts_the_terminal_right() -> None:
    """It leaves the alternate screen and shows the cursor again, and the exit code tells of the signal."""
    with fake_daemon() as running:
        with terminal("models", "-w", "0.1", MODELD_ADDR=f"127.0.0.1:{running.port}") as window:
            window.wait_for("gamma")
            window.process.send_signal(signal.SIGTERM)
            assert window.end() == 128 + signal.SIGTERM
        assert window.seen.count(BACK) == 1
        assert window.seen.rfind("\x1b[?25h") > window.seen.rfind("\x1b[?25l")


def test_a_pipe_gets_a_line_of_json_each_time(tmp_path: Path) -> None:
    """Standard output has JSON alone, outages are told on standard error once each; SIGINT ends with 0."""
    path = str(tmp_path / "s")
    flags = ("--addr", f"unix:{path}")
    with (
        fake_daemon(*flags) as first,
        subprocess.Popen(
            [sys.executable, "-m", "modeld", "ps", "--json", "--watch", "0.1", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
        ) as child,
    ):  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        uptimes = [json.loads(child.stdout.readline())["uptime_seconds"] for _ in range(3)]
        assert uptimes == sorted(uptimes)
        assert first.stop() == 0
        lost = child.stderr.readline().decode()
        with fake_daemon(*flags):
            found = child.stderr.readline().decode()
            while json.loads(child.stdout.readline())["uptime_seconds"] > uptimes[-1] + 3600:
                pass
            child.send_signal(signal.SIGINT)
            rest = child.stdout.read()
            assert child.wait(60) == 0
        assert all(json.loads(line)["state"] for line in rest.splitlines())
        assert lost.startswith(f"modeld: unix:{path} does not answer: ")
        assert found.startswith(f"modeld: unix:{path} answers again, after ")
        assert child.stderr.read() == b""


def test_tables_in_a_pipe_follow_each_other() -> None:
    """Each is followed by an empty line; what reads them may leave at any time."""
    with (
        fake_daemon() as running,
        subprocess.Popen(
            [sys.executable, "-m", "modeld", "models", "--watch", "0.1"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=clean_environment(MODELD_ADDR=f"127.0.0.1:{running.port}"),
        ) as child,
    ):  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        lines = [child.stdout.readline().decode() for _ in range(10)]
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(60) == 1
    assert lines[:5] == lines[5:]
    assert lines[4] == "\n"


def test_a_daemon_that_is_not_there_to_begin_with_is_not_waited_for(tmp_path: Path) -> None:
    """A wrong address is told at once."""
    with terminal("status", "--watch", "--addr", f"unix:{tmp_path}/none") as window:
        assert window.end() == 3
    assert CLEAR not in window.seen
    said = f"nothing answers at unix:{tmp_path}/none (from --addr): no such file or directory; "
    assert said in window.text.replace("\r\n", "")
