# SPDX-License-Identifier: GPL-3.0-only
"""`modeld completion`: the script with which a shell completes commands, options and models."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_HELP = """Print what makes SHELL complete modeld's commands, options, and the names of the daemon's models.

\b
bash: eval "$(modeld completion bash)"      in ~/.bashrc
zsh:  eval "$(modeld completion zsh)"       in ~/.zshrc
fish: modeld completion fish | source       in ~/.config/fish/config.fish

Names of models come from the daemon that MODELD_ADDR, MODELD_CONFIG or an option on the line names.
"""


@click.command(help=_HELP, short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> None:
    """Print the script that click makes for this shell."""
    made = get_completion_class(shell)
    if made is None:
        raise click.ClickException(f"this version of click has no completion for {shell}")
    root = click.get_current_context().find_root()
    click.echo(made(root.command, {}, "modeld", "_MODELD_COMPLETE").source())
