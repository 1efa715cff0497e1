# SPDX-License-Identifier: GPL-3.0-only
"""The daemon as its unit runs it: notified, watched, with a socket passed in, without writable code."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_gguf import write_model

pytestmark = pytest.mark.e2e

WITHOUT_WRITABLE_CODE = """
import ctypes, runpy, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # refused before Linux 6.3
sys.argv[0] = "modeld"
runpy.run_module("modeld", run_name="__main__", alter_sys=True)
"""
AS_SYSTEMD_STARTS_IT = 'LISTEN_PID=$$ exec "$@" 3<&0 </dev/null'


class Manager:
    """The service manager's part: what it was told, the address it passed, the process it started."""

    def __init__(self, told: socket.socket, address: tuple[str, int], process: subprocess.Popen[str]) -> None:
        self.told = told
        self.address = address
        self.process = process

    def next(self) -> dict[str, str]:
        """The next message."""
        fields = self.told.recv(4096).decode().splitlines()
        return dict(field.split("=", 1) for field in fields)

    def next_with(self, key: str) -> dict[str, str]:
        """The next message that has this field."""
        while key not in (message := self.next()):
            pass
        return message


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    models = tmp_path / "models"
    models.mkdir()
    write_model(models / "tiny.gguf")
    command = [sys.executable, "-c", WITHOUT_WRITABLE_CODE, "serve", "--models-dir", str(models)]
    env = {
        "PATH": "/usr/bin:/bin",
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "200000",
        "LISTEN_FDS": "1",
        "STATE_DIRECTORY": str(tmp_path),
    }
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
        socket.create_server(("127.0.0.1", 0)) as listener,
        (tmp_path / "log").open("w") as log,
    ):
        told.bind(env["NOTIFY_SOCKET"])
        told.settimeout(30)
        process = subprocess.Popen(
            ["/bin/sh", "-c", AS_SYSTEMD_STARTS_IT, "sh", *command],
            stdin=listener.fileno(),
            stderr=log,
            env=env,
            text=True,
        )
        try:
            yield Manager(told, listener.getsockname(), process)
        finally:
            process.kill()
            process.wait()
            sys.stderr.write((tmp_path / "log").read_text())


def test_the_service_starts_serves_and_stops_as_told(manager: Manager) -> None:
    """READY when it listens on the passed socket, pings while it runs, STOPPING at SIGTERM, then exit 0."""
    ready = manager.next_with("READY")
    assert ready["READY"] == "1"
    assert ready["STATUS"]
    assert manager.next_with("WATCHDOG")["WATCHDOG"] == "1"

    connection = http.client.HTTPConnection(*manager.address, timeout=30)
    body = json.dumps({"prompt": "The sea", "max_tokens": 4, "ignore_eos": True, "stream": False})
    connection.request("POST", "/infer", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["usage"]["completion_tokens"] == 4

    assert manager.next_with("WATCHDOG")
    manager.process.send_signal(signal.SIGTERM)
    assert manager.next_with("STOPPING")["STOPPING"] == "1"
    assert manager.process.wait(10) == 0
