# SPDX-License-Identifier: GPL-3.0-only
"""`modeld completion`: print a shell completion script."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from modeld.cli.answers import read
from modeld.cli.client import Api, CannotConnect, Refused
from modeld.cli.console.format import plain, size
from modeld.cli.target import current_target, utf8
from modeld.dialects.native.listing import ModelsBody

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


# ----------------------------------------------------------------------
# Names of models on the command line. The shell completes them: it asks the daemon, if there is one.

_PATIENCE_S = 1.5


def complete_models(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the stems and aliases that begin so."""
    try:
        with Api(current_target(context), answer_s=_PATIENCE_S) as api:
            listed = read(api.get("/models"), ModelsBody).models
    except (CannotConnect, Refused, click.UsageError):
        return []
    return [
        CompletionItem(name, help=plain(f"{model.quant} {size(model.size_bytes)} {model.state}".strip()))
        for model in listed
        for name in (model.aliases or (model.id,))
        if name.startswith(begun) and name.isprintable()
    ]


models_option = click.option(
    "--model", "models", multiple=True, metavar="MODEL", callback=utf8, shell_complete=complete_models,
    help="Only of this one: id, stem or alias; may be repeated.",
)  # fmt: skip
