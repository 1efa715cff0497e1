# SPDX-License-Identifier: GPL-3.0-only
"""Names of models on the command line. The shell completes them: it asks the daemon, if there is one."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from modeld.cli.client import CannotConnect, Refused
from modeld.cli.console.answers import Models
from modeld.cli.console.api import Api, read
from modeld.cli.console.figures import size
from modeld.cli.where import current_target, utf8

_PATIENCE_S = 1.5


def complete_models(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the stems and aliases that begin so."""
    try:
        with Api(current_target(context), answer_s=_PATIENCE_S) as api:
            listed = read(api.get("/models"), Models).models
    except (CannotConnect, Refused, click.UsageError):
        return []
    return [
        CompletionItem(name, help=f"{model.quant} {size(model.size_bytes)} {model.state}".strip())
        for model in listed
        for name in (model.aliases or (model.id,))
        if name.startswith(begun) and name.isprintable()
    ]


models_option = click.option(
    "--model", "models", multiple=True, metavar="MODEL", callback=utf8, shell_complete=complete_models,
    help="Only of this one: id, stem or alias; may be repeated.",
)  # fmt: skip
