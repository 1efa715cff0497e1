# SPDX-License-Identifier: GPL-3.0-only
"""`modeld ps`, `models`, `status`, `decisions` and `operations`. They change and load nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import quote

import click
import msgspec
from rich.console import RenderableType

from modeld.cli.answers import read
from modeld.cli.client import Api, Refused
from modeld.cli.console.commands.completion import models_option
from modeld.cli.console.exit_codes import FAILED, leaving
from modeld.cli.console.screen import Screen
from modeld.cli.console.tables import decisions_table, models_table, operations_table
from modeld.cli.console.views import newest, ps_view, status_view, taken_back
from modeld.cli.console.watch import View, show, watch_option
from modeld.cli.target import current_target, target_options, utf8
from modeld.dialects.native.control import OperationsBody
from modeld.dialects.native.listing import ModelsBody
from modeld.domain.operation import OperationStatus
from modeld.domain.status import DaemonStatus

_MOST = 50
"""The daemon keeps so many decisions."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print the daemon's JSON as it is.")


def _look(path: str, view: Callable[[str], View], *, as_json: bool, watch_s: float | None) -> bytes:
    target, screen = current_target(), Screen()
    with leaving(target), Api(target) as api:
        picture = view(target.place)
        return show(screen, target, lambda: api.get(path), picture, as_json=as_json, watch_s=watch_s)


@click.command(short_help="Show what is loaded, who waits, and why.")
@target_options
@click.option("--all", "-a", "everything", is_flag=True, help="Also models that are stopped.")
@json_option
@watch_option
def ps(*, everything: bool, as_json: bool, watch_s: float | None) -> None:
    """Show the models that are loaded, are being loaded, wait for room, or failed.

    MIB is what the ledger counts for the model, MEASURED what its process was seen to hold. BUSY are slots
    in use, WAITING requests without one. WHY is the last decision about the model. Where a terminal is
    narrow, columns are left out.

    Exits with 0, 1 when the daemon refuses, 2 for a wrong command line, 3 when no daemon answers.
    """

    def view(place: str) -> View:
        return lambda data, width: ps_view(read(data, DaemonStatus), place, width, everything=everything)

    _look("/status", view, as_json=as_json, watch_s=watch_s)


@click.command(short_help="Show the models there are.")
@target_options
@json_option
@watch_option
def models(*, as_json: bool, watch_s: float | None) -> None:
    """Show every model that the daemon can serve, loaded or not, and what is wrong with those it cannot.

    FILE is the size on disk, MIB what the model will hold when it is loaded, CONTEXT what it was trained
    with. New files are seen at once.

    Exits with 0, 1 when the daemon refuses, 2 for a wrong command line, 3 when no daemon answers.
    """

    def view(_: str) -> View:
        return lambda data, width: [models_table(read(data, ModelsBody).models, width)]

    _look("/models", view, as_json=as_json, watch_s=watch_s)


@click.command(short_help="Show the whole daemon on one page.")
@target_options
@json_option
@watch_option
def status(*, as_json: bool, watch_s: float | None) -> None:
    """Show health, memory, devices, models, queues, and the last decisions with their reasons.

    Exits with 0, 1 when the daemon refuses or says of itself that something is wrong, 2 for a wrong
    command line, 3 when no daemon answers.
    """

    def view(place: str) -> View:
        return lambda data, width: status_view(read(data, DaemonStatus), place, width)

    answer = _look("/status", view, as_json=as_json, watch_s=watch_s)
    if watch_s is None and read(answer, DaemonStatus).error:
        raise SystemExit(FAILED)


@click.command(short_help="Show what the scheduler decided, and why.")
@target_options
@models_option
@click.option(
    "-n", "most", type=click.IntRange(1, _MOST), default=_MOST, metavar="N", help="Only the last N."
)
@json_option
@watch_option
def decisions(*, models: tuple[str, ...], most: int, as_json: bool, watch_s: float | None) -> None:
    """Show the last decisions of the scheduler, newest last: loads, evictions, refusals, failures.

    With --json: an array of those in /status, as they are there.

    Exits with 0, 1 when the daemon refuses, 2 for a wrong command line, 3 when no daemon answers.
    """
    target, screen = current_target(), Screen()
    with leaving(target), Api(target) as api:
        chosen = _ids(api, models)

        def ask() -> bytes:
            data = api.get("/status")
            return _array(data, chosen, most) if as_json else data

        def view(data: bytes, width: int | None) -> list[RenderableType]:
            found = read(data, DaemonStatus)
            last = newest(found.decisions, chosen, most)
            return [decisions_table(last, found.server_time_unix, width)]

        show(screen, target, ask, view, as_json=as_json, watch_s=watch_s)


def _ids(api: Api, names: tuple[str, ...]) -> frozenset[str]:
    """Return the ids of these models.

    Raises:
      Refused: the daemon has none of that name.
    """
    if not names:
        return frozenset()
    known: dict[str, str] = {}
    listed = read(api.get("/models"), ModelsBody).models
    for model in listed:
        known |= dict.fromkeys(model.aliases, model.id)
    known |= {model.id: model.id for model in listed}
    if missing := [name for name in names if name not in known]:
        raise Refused(f"there is no model {missing[0]!r}; modeld models lists them")
    return frozenset(known[name] for name in names)


class _Written(msgspec.Struct, frozen=True):
    """The decisions of `/status`, as the daemon wrote them."""

    decisions: tuple[msgspec.Raw, ...] = ()


def _array(data: bytes, names: frozenset[str], most: int) -> bytes:
    """Return the chosen decisions as the daemon wrote them."""
    decisions = zip(read(data, DaemonStatus).decisions, read(data, _Written).decisions, strict=True)
    chosen = [raw for it, raw in decisions if not names or it.model_id in names]
    return msgspec.json.encode(chosen[-most:])


# ----------------------------------------------------------------------
# `modeld operations`, `cancel`: what was asked for with load, unload and switch, by whomever.


@click.command(short_help="Show loads, unloads and switches that were asked for.")
@target_options
@json_option
@watch_option
def operations(*, as_json: bool, watch_s: float | None) -> None:
    """Show the latest operations, with how far they are, and how they ended.

    Exits with 0, 1 when the daemon refuses, 2 for a wrong command line, 3 when no daemon answers.
    """

    def view(_: str) -> View:
        return lambda data, width: [
            operations_table(read(data, OperationsBody).operations, time.time(), width)
        ]

    _look("/operations", view, as_json=as_json, watch_s=watch_s)


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
            status = read(api.get("/status"), DaemonStatus)
            screen.show([taken_back(read(data, OperationStatus), status)])
