# SPDX-License-Identifier: GPL-3.0-only
"""`modeld operations`, `cancel`: what was asked for with load, unload and switch, by whomever."""

from __future__ import annotations

import time
from urllib.parse import quote

import click
from rich.console import RenderableType

from modeld.cli.console.answers import Operation, Operations, Status
from modeld.cli.console.api import Api, read
from modeld.cli.console.commands.look import json_option
from modeld.cli.console.leaving import leaving
from modeld.cli.console.planned import taken_back
from modeld.cli.console.screen import Screen
from modeld.cli.console.tables import operations_table
from modeld.cli.console.watch import show, watch_option
from modeld.cli.where import current_target, target_options, utf8


@click.command(short_help="Show loads, unloads and switches that were asked for.")
@target_options
@json_option
@watch_option
def operations(*, as_json: bool, watch_s: float | None) -> None:
    """Show the latest operations, with how far they are, and how they ended.

    Exits with 0, 1 when the daemon refuses, 2 for a wrong command line, 3 when no daemon answers.
    """
    target, screen = current_target(), Screen()

    def view(data: bytes, width: int | None) -> list[RenderableType]:
        found = read(data, Operations).operations
        return [operations_table(found, time.time(), width)]

    with leaving(target), Api(target) as api:
        show(screen, target, lambda: api.get("/operations"), view, as_json=as_json, watch_s=watch_s)


@click.command(short_help="Take an operation back.")
@click.argument("operation", callback=utf8)
@target_options
@json_option
def cancel(*, operation: str, as_json: bool) -> None:
    """Take the demand of OPERATION back. What others wait for goes on.

    Exits with 0, 1 when the daemon refuses, 2 for a wrong command line, 3 when no daemon answers.
    """
    target, screen = current_target(), Screen()
    with leaving(target), Api(target) as api:
        data = api.delete(f"/operations/{quote(operation, safe='')}")
        if as_json:
            screen.json(data)
        else:
            status = read(api.get("/status"), Status)
            screen.show([taken_back(read(data, Operation), status)])
