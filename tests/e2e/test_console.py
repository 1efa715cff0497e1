# SPDX-License-Identifier: GPL-3.0-only
"""An operator's minute at the command line, with a real model in a process of its own."""

from __future__ import annotations

import json

import pytest
from support.cli_runner import modeld
from support.daemon_process import Q4_0, daemon
from support.terminal import terminal

pytestmark = [pytest.mark.e2e, pytest.mark.real]


def test_plan_load_ask_look_and_unload() -> None:
    """The plan comes true, the model answers, its process is shown, and its memory is free again."""
    with daemon("--llama-ctx", "1024") as running:
        here = {"MODELD_ADDR": f"127.0.0.1:{running.port}"}
        plan = json.loads(modeld("plan", Q4_0, "--json", **here).out)
        assert plan["fits"]
        with terminal("load", Q4_0, **here) as window:
            assert window.end() == 0
        assert f"{Q4_0}: loaded" in window.text
        assert modeld("run", Q4_0, "Say hi", "--max-tokens", "4", **here).out.strip()
        [row] = json.loads(modeld("ps", "--json", **here).out)["instances"]
        assert (row["model_id"], row["state"]) == (f"{Q4_0}.gguf", "ready")
        [shown] = modeld("ps", **here).rows
        assert shown[:2] == [Q4_0, "ready"]
        assert str(row["pid"]) in shown
        assert modeld("unload", Q4_0, **here).code == 0
        assert modeld("ps", **here).rows == []
        assert "memory: 0.0 MiB held" in modeld("status", **here).out
