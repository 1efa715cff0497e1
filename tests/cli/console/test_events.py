# SPDX-License-Identifier: GPL-3.0-only
"""`modeld events`: a line for what happens, through a restart of the daemon."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path

import pytest
from support.cli_runner import fake_daemon, modeld
from support.daemon_answers import NOW, answer
from support.terminal import clean_environment, terminal

from modeld.cli.console.format import told
from modeld.domain.daemon_events import FleetEvent


def happening(**keys: object) -> FleetEvent:
    """An event as it is read from the stream."""
    return answer(FleetEvent, seq=1, run="r", **keys)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            happening(kind="loading", at_unix=NOW, model="big.gguf", reason="1 requests wait for it",
                      numbers={"need_mb": 590.0, "waiters": 1.0}),
            "22:13:20  loading            big: 1 requests wait for it; need_mb=590 waiters=1",
        ),
        (
            happening(kind="evicting", at_unix=NOW, model="old.gguf", for_model="big.gguf", reason="idle"),
            "22:13:20  evicting           old for big: idle",
        ),
        (
            happening(kind="ended", at_unix=NOW, model="a.gguf", ticket=7, cause="stop",
                      numbers={"ttft_ms": 70.25}),
            "22:13:20  ended              a request 7 (stop): ttft_ms=70.25",
        ),
        (
            happening(kind="operation_started", at_unix=NOW, model="a.gguf", operation="f1", cause="load"),
            "22:13:20  operation_started  a operation f1 (load)",
        ),
        (happening(kind="daemon_draining", at_unix=NOW, reason="a\nb\x1b"),
         "22:13:20  daemon_draining    a\\nb\\x1b"),
    ],
)  # fmt: skip
def test_an_event_is_a_line(event: FleetEvent, line: str) -> None:
    """Time, kind, about whom, why, and the figures; nothing that a terminal would obey."""
    assert told(event, UTC).plain == line


@contextmanager
def following(*args: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `modeld events` with pipes."""
    child = subprocess.Popen(
        [sys.executable, "-m", "modeld", "events", *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
    )  # fmt: skip
    with child:
        try:
            yield child
        finally:
            child.kill()


@pytest.mark.e2e
def test_events_go_on_through_a_restart(tmp_path: Path) -> None:
    """JSON as it is; a daemon that stops is told once, and so is that it is back; SIGINT ends it with 0."""
    flags = ("--addr", f"unix:{tmp_path}/s")
    with fake_daemon(*flags) as first, following("--json", "--kind", "pinned,ready", *flags) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        wait_until_followed(*flags)
        assert modeld("pin", "alpha", *flags).code == 0
        event = json.loads(child.stdout.readline())
        assert (event["kind"], event["model"]) == ("pinned", "alpha.gguf")
        assert first.stop() == 0
        assert b" does not answer: it ended the stream; trying again" in child.stderr.readline()
        with fake_daemon(*flags):
            assert child.stderr.readline().endswith(b" answers again\n")
            assert modeld("load", "beta", *flags).code == 0
            events = (json.loads(line) for line in child.stdout)
            # The new run says that what came before it is not there.
            event = next(event for event in events if event["kind"] != "missed")
            assert (event["kind"], event["model"]) == ("ready", "beta.gguf")
            child.send_signal(signal.SIGINT)
            assert child.wait(60) == 0
            assert (child.stdout.read(), child.stderr.read()) == (b"", b"")


@pytest.mark.e2e
def test_a_terminal_shows_lines_and_what_is_refused() -> None:
    """Only of the model that was asked for; an unknown one, or an unknown kind, is exit 1."""
    with fake_daemon() as running:
        here = {"MODELD_ADDR": f"127.0.0.1:{running.port}"}
        with terminal("events", "--model", "pet", columns=300, **here) as window:
            wait_until_followed(**here)
            modeld("pin", "beta", **here)
            modeld("load", "alpha", **here)
            modeld("pin", "alpha", **here)
            window.wait_for(r"\d\d:\d\d:\d\d  pinned +alpha: ")
            assert "progress" not in window.text
            window.interrupt()
            assert window.end() == 0
            assert "beta" not in window.text
        for args in (("--model", "nope"), ("--kind", "nope"), ("--after", "nope")):
            refused = modeld("events", *args, **here)
            assert (refused.code, refused.out) == (1, ""), args
            assert refused.err.startswith("modeld: ")
    assert modeld("events", **here).code == 3


def wait_until_followed(*flags: str, **environ: str) -> None:
    """Return when the daemon has a reader of its events."""
    limit = time.monotonic() + 90
    while not json.loads(modeld("status", "--json", *flags, **environ).out)["events"]["readers"]:
        assert time.monotonic() < limit, "nobody follows"
