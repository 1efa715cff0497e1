# SPDX-License-Identifier: GPL-3.0-only
"""No descriptor is left, no file can grow, the clock jumps: the daemon serves on, or says why it cannot."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from soaking import daemon_faults, resource_faults
from soaking.daemon import SoakDaemon
from support.child_processes import poll
from support.fault_cases import TIMES, what_stays

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="what is asserted is read from /proc"),
]


async def test_without_descriptors_who_comes_waits(here: SoakDaemon) -> None:
    """EMFILE on accept: nobody is lost, streams go on, the daemon neither spins nor dies."""
    row = await resource_faults.no_descriptors(here)
    assert await what_stays(here, row) == []


async def test_without_descriptors_no_model_can_be_loaded(here: SoakDaemon) -> None:
    """The client reads why, and the model is loaded when there are descriptors again."""
    row = await resource_faults.no_process(here)
    assert await what_stays(here, row) == []
    assert row.recovery_s is not None


async def test_a_full_disk_costs_the_log_only(here: SoakDaemon) -> None:
    """Requests are served while no file can grow; then the log goes on, and tells what it lacks."""
    row = await resource_faults.disk_full(here)
    assert await what_stays(here, row) == []


async def test_a_clock_that_jumps_is_not_felt() -> None:
    """Ahead by a year, back to 1970, in a load and in a stream: nothing ends early, durations stay true."""
    for row in await daemon_faults.shift_clock(1, list(daemon_faults.JUMPS_S) if TIMES > 1 else ["to 1970"]):
        assert row.complaints == ()


def test_it_starts_and_stops_with_a_log_on_a_full_disk(tmp_path: Path) -> None:
    """Standard error takes nothing from the first line on: the daemon serves all the same and ends with 0."""
    (tmp_path / "a.gguf").write_bytes(b"x")
    path = tmp_path / "modeld.sock"
    command = [sys.executable, "-m", "modeld", "serve", "--engine", "fake", "--addr", f"unix:{path}"]
    command += ["--models-dir", str(tmp_path), "--state-dir", str(tmp_path)]
    with (
        Path("/dev/full").open("wb") as full,
        subprocess.Popen(command, stderr=full, env=os.environ) as process,
    ):
        try:
            poll(lambda: process.poll() is not None or listens(path), 60.0)
            transport = httpx2.HTTPTransport(uds=str(path))
            with httpx2.Client(transport=transport, base_url="http://x", timeout=60) as http:
                request = {"prompt": "a b c", "max_tokens": 3, "stream": False}
                answer = http.post("/infer?log=debug", json=request)
            assert answer.json()["content"] == "a b c"
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def listens(path: Path) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
