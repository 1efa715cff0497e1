# SPDX-License-Identifier: GPL-3.0-only
"""The `modeld` command."""

from __future__ import annotations

import os
import platform
import sys

import click

from modeld import __version__
from modeld.cli.check_config import check_config
from modeld.cli.inspect import inspect
from modeld.cli.keys import keys
from modeld.cli.run import run
from modeld.cli.serve import serve
from modeld.cli.simulate import simulate

_OWN_FLAGS = frozenset({"--help", "-h", "--version", "-V"})


class _Modeld(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read flags without a command as those of `serve`, as the Go program did."""
        if args and args[0].startswith("-") and args[0] not in _OWN_FLAGS:
            args = ["serve", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Modeld, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(
    __version__, "-V", "--version", message=f"modeld {__version__} (Python {platform.python_version()})"
)
def modeld() -> None:
    """Serve many llama.cpp models from one machine, inside a memory budget.

    \b
    modeld serve --models-dir ~/models/llm     start the daemon
    modeld run tinyllama "Write a haiku"       ask it, and watch the answer arrive
    modeld check-config --config modeld.yaml   see what a config would do
    modeld inspect tinyllama-q4.gguf           see what a model takes in memory

    Every setting is a flag, an environment variable (MODELD_VRAM_BUDGET_MB for --vram-budget-mb)
    and a key of the config file (vram_budget_mb); flags are strongest. "modeld serve --help" lists them.
    """  # noqa: D301 -- \b is click's mark for lines that stay as they are


modeld.add_command(serve)
modeld.add_command(run)
modeld.add_command(check_config)
modeld.add_command(keys)
modeld.add_command(simulate)
modeld.add_command(inspect)


def main() -> None:
    """Run the command line, and exit the process with its code."""
    _fill_standard_streams()
    modeld(prog_name="modeld")


def _fill_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed, or else a socket would take its number."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(fd, mode, encoding="utf-8"))
