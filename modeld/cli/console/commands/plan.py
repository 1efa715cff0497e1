# SPDX-License-Identifier: GPL-3.0-only
"""`modeld plan`: what would happen if a model were loaded now. Nothing happens."""

from __future__ import annotations

import click

from modeld.cli.console.answers import Plan
from modeld.cli.console.api import Api, read
from modeld.cli.console.commands.change import model_argument
from modeld.cli.console.commands.look import json_option
from modeld.cli.console.leaving import FAILED, leaving
from modeld.cli.console.planned import plan_view
from modeld.cli.console.screen import Screen
from modeld.cli.where import current_target, target_options


@click.command(short_help="Ask what a load would take, and who would go.")
@model_argument
@target_options
@click.option("--context", "--ctx", type=click.IntRange(1), metavar="N", help="With so many KV cells.")
@click.option("--slots", type=click.IntRange(1), metavar="N", help="For so many requests at a time.")
@json_option
def plan(*, model: str, context: int | None, slots: int | None, as_json: bool) -> None:
    """Ask what would happen if MODEL were loaded now.

    Does it fit, who goes and why, how long does it take? It is the answer of the function that decides when a
    request comes; nothing is loaded or evicted.

    Exits with 0 when it fits, 1 when it does not or the daemon refuses, 2 for a wrong command line, 3
    when no daemon answers.
    """
    body: dict[str, object] = {"model": model}
    body |= {name: value for name, value in (("context", context), ("slots", slots)) if value is not None}
    target, screen = current_target(), Screen()
    with leaving(target), Api(target) as api:
        data = api.post("/plan", body)
        answer = read(data, Plan)
    if as_json:
        screen.json(data)
    else:
        screen.show(plan_view(answer, screen.width))
    if not answer.fits:
        raise SystemExit(FAILED)
