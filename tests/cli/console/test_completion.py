# SPDX-License-Identifier: GPL-3.0-only
"""Completion in the shell: commands and options from the program, models from the daemon."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli_runner import fake_daemon, modeld
from support.terminal import clean_environment

pytestmark = pytest.mark.process


def completions(words: str, **environ: str) -> list[str]:
    """What bash is offered for the last of these words."""
    code = "import sys; from modeld.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, check=False, timeout=60, text=True, stdin=subprocess.DEVNULL,
        env=clean_environment(
            _MODELD_COMPLETE="bash_complete", COMP_WORDS=words,
            COMP_CWORD=str(len(words.split(" ")) - 1), **environ,
        ),
    )  # fmt: skip
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.e2e
def test_models_are_completed_from_the_daemon() -> None:
    """Stems and aliases of the daemon that the line, or the environment, names; nothing without one."""
    with fake_daemon() as running:
        address = f"127.0.0.1:{running.port}"
        assert completions("modeld run ", MODELD_ADDR=address) == ["alpha", "pet", "beta", "gamma"]
        assert completions(f"modeld decisions --addr {address} --model b") == ["beta"]
    assert completions("modeld run ", MODELD_ADDR=address) == []
    assert completions("modeld run ", MODELD_ADDR="nonsense") == []


def test_commands_and_options_are_completed() -> None:
    """Without a daemon."""
    assert completions("modeld dec") == ["decisions"]
    assert "--watch" in completions("modeld ps --w")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str, tmp_path: Path) -> None:
    """It calls modeld for the completions; bash accepts it."""
    script = modeld("completion", shell)
    assert script.code == 0
    assert f"_MODELD_COMPLETE={shell}_complete" in script.out
    if shell == "bash":
        file = tmp_path / "script"
        file.write_text(script.out, encoding="utf-8")
        bash = shutil.which("bash")
        assert bash is not None
        subprocess.run([bash, "-n", file], check=True, timeout=60)
