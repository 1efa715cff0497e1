# SPDX-License-Identifier: GPL-3.0-only
"""The `modeld` command."""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import cast

import click

from modeld import __version__

_OWN_FLAGS = frozenset({"--help", "-h", "--version", "-V"})

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_COMMANDS: Mapping[str, str] = {
    "serve": "modeld.cli.serve",
    "check-config": "modeld.cli.check_config",
    "inspect": "modeld.cli.inspect",
    "keys": "modeld.cli.keys",
    "simulate": "modeld.cli.simulate",
    "run": "modeld.cli.run",
    "ps": "modeld.cli.console.commands.look",
    "models": "modeld.cli.console.commands.look",
    "status": "modeld.cli.console.commands.look",
    "decisions": "modeld.cli.console.commands.look",
    "events": "modeld.cli.console.commands.events",
    "load": "modeld.cli.console.commands.change",
    "unload": "modeld.cli.console.commands.change",
    "switch": "modeld.cli.console.commands.change",
    "operations": "modeld.cli.console.commands.look",
    "cancel": "modeld.cli.console.commands.look",
    "pin": "modeld.cli.console.commands.change",
    "unpin": "modeld.cli.console.commands.change",
    "plan": "modeld.cli.console.commands.change",
    "completion": "modeld.cli.console.commands.completion",
}
"""Each command and the module that has it, under its name with underscores.

It is imported when it is called: `serve` must not start slower for what the others need.
"""


class _Modeld(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read flags without a command as those of `serve`, as the Go program did."""
        if args and args[0].startswith("-") and args[0] not in _OWN_FLAGS:
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the table's order: the daemon's, then the clients'."""
        return [*_COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command."""
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        found = getattr(import_module(_COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
        return cast("click.Command", found)


_HELP = """Serve many llama.cpp models from one machine, inside a memory budget.

\b
modeld serve --models-dir ~/models/llm     start the daemon
modeld run tinyllama "Write a haiku"       ask it, and watch the answer arrive
modeld ps --watch                          see what is loaded, who waits, and why
modeld check-config --config modeld.yaml   see what a config would do
modeld inspect tinyllama-q4.gguf           see what a model takes in memory

Every setting is a flag, an environment variable (MODELD_VRAM_BUDGET_MB for --vram-budget-mb)
and a key of the config file (vram_budget_mb); flags are strongest. "modeld serve --help" lists them.
"""


@click.group(
    cls=_Modeld,
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(
    __version__, "-V", "--version", message=f"modeld {__version__} (Python {platform.python_version()})"
)
def modeld() -> None:
    """Do nothing by itself: a command follows, or the flags of `serve`."""


def main() -> None:
    """Run the command line, and exit the process with its code."""
    _fill_standard_streams()
    try:
        modeld(prog_name="modeld")
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        sys.stderr.write(f"modeld: the output cannot be written: {(error.strerror or str(error)).lower()}\n")
        # The interpreter would write what is left of it once more at its end, and complain of that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def _fill_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed, or else a socket would take its number."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(fd, mode, encoding="utf-8"))
