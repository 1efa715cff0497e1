# SPDX-License-Identifier: GPL-3.0-only
"""`modeld events`: print the daemon's events as they happen, one per line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlencode

import click

from modeld.cli.answers import read
from modeld.cli.client import Api, CannotConnect, Denied
from modeld.cli.console.commands.completion import models_option
from modeld.cli.console.exit_codes import complain, leaving
from modeld.cli.console.follow import pause
from modeld.cli.console.format import told
from modeld.cli.console.screen import Screen
from modeld.cli.console.watch import PASSING
from modeld.cli.target import Target, current_target, target_options, utf8
from modeld.domain.daemon_events import EventKind, FleetEvent

_PAUSE_S = 1.0
"""Between two tries, while the daemon does not answer."""
_SILENT_S = 60.0
"""The stream carries an empty line every 15 s; one that is silent for so long is broken."""


@click.command(short_help="Follow what the daemon does.")
@target_options
@models_option
@click.option(
    "--kind", "kinds", multiple=True, metavar="KIND", callback=utf8,
    help="Only of this kind: loading, ready, refused, ...; may be repeated, or have commas.",
)  # fmt: skip
@click.option("--after", metavar="ID", callback=utf8, help="Begin after this event: RUN-SEQ, as in the JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's JSON as it is, a line each.")
def events(*, models: tuple[str, ...], kinds: tuple[str, ...], after: str | None, as_json: bool) -> None:
    """Follow what happens to requests and models, a line each, until Ctrl-C.

    How far a load is, is left to modeld load and --json. A daemon that stops is told and waited for; what
    happened meanwhile is shown when it answers again, as far
    as it has kept it.

    Exits with 0 after Ctrl-C, 1 when the daemon refuses, 2 for a wrong command line, 3 when no daemon answers
    to begin with.
    """
    target, screen = current_target(), Screen()

    def show(data: bytes, event: FleetEvent) -> None:
        if as_json:
            screen.json(data)
        elif event.reason or event.kind != EventKind.LOADING:  # without a reason it tells how far a load is
            screen.show([told(event)])

    chosen = [*(("model", name) for name in models), *(("kind", name) for name in kinds)]
    with leaving(target), Api(target) as api, suppress(KeyboardInterrupt):
        _follow(api, target, chosen, after, show)


def _follow(
    api: Api,
    target: Target,
    chosen: Sequence[tuple[str, str]],
    after: str | None,
    show: Callable[[bytes, FleetEvent], None],
) -> None:
    """Show events for ever; raises as `Api.get`, of the first try, later only for what will not pass."""
    began = lost = False
    while True:
        query = urlencode([*chosen, *([("last_event_id", after)] if after else [])])
        why = "it ended the stream"
        try:
            with api.lines(f"/events?{query}" if query else "/events", silent_s=_SILENT_S) as lines:
                if lost:
                    complain(f"{target.place} answers again")
                began, lost = True, False
                for data in lines:
                    event = read(data, FleetEvent)
                    show(data, event)
                    after = event.id if event.run else after
        except CannotConnect as error:
            if not began:
                raise
            why = str(error)
        except Denied as error:
            if not began or error.status not in PASSING:
                raise
            why = str(error)
        if not lost:
            complain(f"{target.place} does not answer: {why}; trying again every {_PAUSE_S:g} s")
            lost = True
        pause(_PAUSE_S)
