# SPDX-License-Identifier: GPL-3.0-only
"""What happens at SIGTERM when an engine does not come back."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

pytestmark = pytest.mark.e2e

HANGS = """
import sys, threading
from modeld.engine.fake import FakeEngine
FakeEngine.interrupt = lambda self: None  # deaf: like an engine that is stuck in C
from modeld.cli.main import main
sys.argv = ["modeld", "serve", *sys.argv[1:]]
main()
"""


def test_an_engine_that_hangs_cannot_hold_the_stop(tmp_path: Path) -> None:
    """The process is gone within shutdown_timeout plus a second, with 1, and says where every thread was."""
    (tmp_path / "a.gguf").write_bytes(b"x")
    flags = ["--addr", "127.0.0.1:0", "--models-dir", str(tmp_path), "--state-dir", str(tmp_path)]
    flags += [
        "--engine",
        "fake",
        "--fake",
        "stall_at=1",
        "--shutdown-timeout",
        "2s",
        "--drain-timeout",
        "500ms",
        "--isolation",
        "thread",
    ]
    with subprocess.Popen(
        [sys.executable, "-c", HANGS, *flags], stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        url = next(found[1] for line in lines if (found := re.search(r"listens on (\S+)", line)))
        with httpx2.stream(
            "POST", f"{url}/infer", json={"prompt": "Hi", "events": True}, timeout=20
        ) as response:
            answer = response.iter_lines()
            next(answer)
            began = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            last = json.loads([line for line in answer if line][-1])
        code = process.wait(20)
        took = time.perf_counter() - began
        rest = "".join(lines)
    assert took < 3.0
    assert code == 1
    assert "Timeout" in rest
    assert last["done"] is True
