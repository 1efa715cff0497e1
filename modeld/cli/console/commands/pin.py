# SPDX-License-Identifier: GPL-3.0-only
"""`modeld pin`, `unpin`: whether a model may be evicted and unloaded by time."""

from __future__ import annotations

import click

from modeld.cli.console.answers import Model
from modeld.cli.console.api import Api, model_path, read
from modeld.cli.console.commands.change import models_argument
from modeld.cli.console.figures import short
from modeld.cli.console.leaving import leaving
from modeld.cli.console.screen import Screen
from modeld.cli.where import current_target, target_options

_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the models as the daemon's JSON, a line each."
)


def _pin(models: tuple[str, ...], *, pinned: bool, as_json: bool) -> None:
    target, screen = current_target(), Screen()
    with leaving(target), Api(target) as api:
        for model in models:
            data = api.post(model_path(model, "pin"), {"pinned": pinned})
            if as_json:
                screen.json(data)
                continue
            row = read(data, Model)
            told = "pinned" if row.pinned else "not pinned"
            screen.show([f"{short(row.id)}: {told}, {row.state}"])


@click.command(short_help="Keep models in memory once they are loaded.")
@models_argument
@target_options
@_json
def pin(*, models: tuple[str, ...], as_json: bool) -> None:
    """Pin each MODEL: once loaded it is neither evicted for others nor unloaded by time.

    It is not loaded by this: modeld load --pin does both. It holds until the daemon restarts, which goes by
    its config again.

    Exits with 0, 1 when the daemon refuses, 2 for a wrong command line, 3 when no daemon answers.
    """
    _pin(models, pinned=True, as_json=as_json)


@click.command(short_help="Let pinned models be evicted again.")
@models_argument
@target_options
@_json
def unpin(*, models: tuple[str, ...], as_json: bool) -> None:
    """Let each MODEL be evicted again, and unloaded by time.

    Exits with 0, 1 when the daemon refuses, 2 for a wrong command line, 3 when no daemon answers.
    """
    _pin(models, pinned=False, as_json=as_json)
