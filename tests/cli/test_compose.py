# SPDX-License-Identifier: GPL-3.0-only
"""The daemon as a whole, where it cannot begin."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

PATIENCE_S = 60.0
PROGRAM = """
import sys
from pathlib import Path
from modeld.cli.compose import serve_forever
from modeld.config.settings import Settings
from modeld.core.models import EngineKind
sys.exit(serve_forever(Settings(addr=sys.argv[1], models_dir=Path(sys.argv[2]), engine=EngineKind.FAKE)))
"""


def test_an_address_that_is_taken_behind_the_preflight_is_told_in_a_line(tmp_path: Path) -> None:
    """It names the address and the reason, without a traceback, and the exit code is 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, address, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 1
    assert f"modeld: cannot listen on {address}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr
