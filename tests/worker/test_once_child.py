# SPDX-License-Identifier: GPL-3.0-only
"""Programs that answer once: they load nothing that may crash before they are confined."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from modeld.worker.spawn import child_environment

pytestmark = pytest.mark.process

PATIENCE_S = 60.0


@pytest.mark.parametrize("program", ["modeld.worker.device_child", "modeld.worker.dry_run_child"])
def test_a_program_loads_llama_cpp_only_once_it_is_confined(program: str) -> None:
    """A library for another CPU dies where it is loaded; by then no core file is left, and the rest holds."""
    shown = f"import sys, {program}; print(*sys.modules)"
    command = [sys.executable, "-P", "-S", "-c", shown]
    env = child_environment(os.environ)
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env, timeout=PATIENCE_S)
    loaded = done.stdout.split()
    assert "modeld.worker.oneshot_child" in loaded
    assert [name for name in loaded if name.startswith(("llama_cpp", "numpy"))] == []
