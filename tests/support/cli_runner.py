# SPDX-License-Identifier: GPL-3.0-only
"""An operator at a pipe: commands against a daemon with the fake engine and three small models."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner
from support.daemon_process import Daemon, daemon
from support.terminal import clean_environment
from support.tiny_gguf import write_model

from modeld.cli.main import modeld as command

MODELS = ("alpha", "beta", "gamma")


class Answer:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def rows(self) -> list[list[str]]:
        """Of a table: its rows, without the heading, as cells."""
        return [line.split() for line in self.out.splitlines()[1:]]


def modeld(*args: str, **environ: str) -> Answer:
    """Run a command in this process, with pipes for its standard streams."""
    without = dict.fromkeys(set(os.environ) - set(clean_environment()))
    done = CliRunner(env={**without, **environ}).invoke(command, args, prog_name="modeld")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Answer(done.exit_code, done.stdout, done.stderr)


@contextmanager
def fake_daemon(
    *flags: str, script: str = "eos_after=3", more: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """Run a daemon with the models alpha, beta and gamma; `pet` is another name of alpha.

    `more` has further models, each with a script of its own.
    """
    more = more or {}
    with tempfile.TemporaryDirectory() as folder:
        for name in (*MODELS, *more):
            write_model(Path(folder) / f"{name}.gguf")
        config = Path(folder) / "modeld.json"
        models = {"alpha": {"aliases": ["pet"]}} | {name: {"fake": script} for name, script in more.items()}
        config.write_text(json.dumps({"models": models}), encoding="utf-8")
        fake = ("--engine", "fake", "--fake", script, "--isolation", "thread", "--config", str(config))
        with daemon(*fake, *flags, models_dir=Path(folder)) as running:
            yield running
