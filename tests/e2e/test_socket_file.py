# SPDX-License-Identifier: GPL-3.0-only
"""The file of a daemon's Unix socket: there while it serves, gone however it ends in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from support.child_processes import poll

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("how", ["SIGTERM", "two signals", "failed start"])
def test_no_socket_file_stays(tmp_path: Path, how: str) -> None:
    """After a stop, after one that does not wait for a stream, and when the start fails later."""
    (tmp_path / "a.gguf").write_bytes(b"x")
    path = tmp_path / "modeld.sock"
    command = [sys.executable, "-m", "modeld", "serve", "--engine", "fake", "--addr", f"unix:{path}"]
    command += ["--models-dir", str(tmp_path), "--fake", "step_s=0.05", "--drain-timeout", "60s"]
    command += ["--state-dir", str(tmp_path / "state"), "--shutdown-timeout", "60s"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            poll(lambda: process.poll() is not None or path.exists(), 60.0)
            assert path.is_socket()
            with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://x") as http:
                if how == "failed start":
                    second = subprocess.run(command, capture_output=True, timeout=60, check=False)
                    assert second.returncode == 1
                    assert path.is_socket()
                    assert http.get("/healthz").status_code == 200
                if how == "two signals":
                    body = {"prompt": "a " * 5000, "max_tokens": 5000}
                    with http.stream("POST", "/infer", json=body) as stream:
                        lines = stream.iter_lines()
                        next(lines)
                        process.send_signal(signal.SIGTERM)
                        poll(lambda: http_is_draining(path), 60.0)
                        process.send_signal(signal.SIGTERM)
                        assert process.wait(30) == 0
                else:
                    process.terminate()
                    assert process.wait(30) == 0
        finally:
            process.kill()
    assert not os.path.lexists(path)


def http_is_draining(path: Path) -> bool:
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://x") as http:
        return http.get("/readyz").text == "draining"
