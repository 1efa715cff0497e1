# SPDX-License-Identifier: GPL-3.0-only
"""What operators type costs the daemon and its workers nothing: none of it is imported there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.daemon_process import daemon
from support.tiny_gguf import write_model

from modeld.cli.main import modeld

CLIENT = re.compile(
    r"\b(httpx2|httpcore2?|modeld\.cli\.(answers|console\S*|client|run|where|simulate)|rich\.(live|progress))$"
)


def imported(log: str) -> set[str]:
    """The modules in the log of -X importtime."""
    return {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")}


@pytest.mark.e2e
def test_a_daemon_that_serves_has_imported_no_client(tmp_path: Path) -> None:
    """From its start to its end, with a model loaded in between."""
    write_model(tmp_path / "tiny.gguf")
    flags = ("--engine", "fake", "--fake", "eos_after=3", "--isolation", "thread")
    with daemon(*flags, models_dir=tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"}) as running:
        done = CliRunner(env={"MODELD_ADDR": f"127.0.0.1:{running.port}"}).invoke(
            modeld, ["run", "tiny", "Hi"]
        )
        assert done.exit_code == 0
    modules = imported(running.log)
    assert "modeld.cli.compose" in modules
    assert "modeld.runtime.scheduling.scheduler" in modules
    assert [name for name in modules if CLIENT.search(name)] == []


@pytest.mark.process
def test_a_worker_has_imported_no_command_line() -> None:
    """A worker process imports neither a command nor the libraries of one."""
    code = "import sys, modeld.worker.child; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    modules = done.stdout.splitlines()
    assert "modeld.worker.engine_loop" in modules
    assert [
        name for name in modules if CLIENT.search(name) or re.match(r"rich\b|click\b|modeld\.cli", name)
    ] == []


@pytest.mark.parametrize("name", modeld.list_commands(None))
def test_every_command_is_where_the_table_says(name: str) -> None:
    """Each can be imported, and its help has exit codes or says that it has no daemon to ask."""
    done = CliRunner().invoke(modeld, [name, "--help"])
    assert done.exit_code == 0
    assert f"Usage: modeld {name} " in done.stdout
