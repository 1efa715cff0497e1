# SPDX-License-Identifier: GPL-3.0-only
"""`modeld load`, `unload`, `switch`, `pin` and `plan`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import click
import msgspec
from rich.console import RenderableType

from modeld.cli.answers import read
from modeld.cli.client import Api, Refused, model_path
from modeld.cli.console.commands.completion import complete_models
from modeld.cli.console.commands.look import json_option
from modeld.cli.console.exit_codes import FAILED, complain, leaving
from modeld.cli.console.follow import Followed, ProgressView
from modeld.cli.console.format import line, mib, short, span
from modeld.cli.console.screen import Screen
from modeld.cli.console.tables import Column, grid
from modeld.cli.console.views import outcome
from modeld.cli.target import current_target, target_options, utf8
from modeld.dialects.native.listing import ModelBody
from modeld.domain.operation import OperationState, OperationStatus
from modeld.scheduler.plan import LoadPlan

models_argument = click.argument(
    "models", nargs=-1, required=True, metavar="MODEL...", callback=utf8, shell_complete=complete_models
)
model_argument = click.argument("model", callback=utf8, shell_complete=complete_models)
_detach = click.option(
    "--detach", "-d", is_flag=True, help="Begin it and return at once; Ctrl-C has nothing to take back then."
)
_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the operations as the daemon's JSON, a line each."
)


def _change(
    action: str, models: Sequence[str], body: Mapping[str, object], *, detach: bool, as_json: bool
) -> None:
    """Begin one operation for each model, and wait for all; one that is refused leaves the others."""
    target, screen = current_target(), Screen()
    failed = False
    with leaving(target), Api(target) as api:
        followed = Followed(api)
        try:
            for model in models:
                try:
                    followed.begin(model_path(model, action), body)
                except Refused as error:
                    complain(str(error))
                    failed = True
            if not detach:
                followed.wait(ProgressView())
        except KeyboardInterrupt:
            if not detach:
                followed.take_back()
            raise
    for data in followed.last:
        operation = read(data, OperationStatus)
        failed |= operation.state in {OperationState.FAILED, OperationState.CANCELLED}
        if as_json:
            screen.json(data)
        elif operation.state == OperationState.RUNNING:
            screen.show([line(f"{short(operation.model)}: {operation.kind} begun, operation {operation.id}")])
        elif operation.state == OperationState.DONE:
            screen.show([outcome(operation)])
        else:
            complain(outcome(operation))
    if failed:
        raise SystemExit(FAILED)


@click.command(short_help="Load models, and watch it happen.")
@models_argument
@target_options
@click.option("--pin", is_flag=True, help="Keep it loaded: it is never evicted.")
@click.option(
    "--keep-alive", metavar="DURATION", callback=utf8,
    help="How long it stays when nobody uses it: 10m; negative: for ever. [default: its ttl]",
)  # fmt: skip
@_detach
@_json
def load(*, models: tuple[str, ...], pin: bool, keep_alive: str | None, detach: bool, as_json: bool) -> None:
    """Load each MODEL, and wait until it is ready. Idle models make room as they do for a request.

    Ctrl-C takes the demand back: a load that nobody else waits for is stopped, one that requests wait for
    goes on, and which of the two it was is told. What was evicted for it stays evicted. To leave a load
    to itself use --detach; closing the terminal leaves it, too.

    Exits with 0 when all are loaded, 1 when one is refused or fails, 2 for a wrong command line, 3 when
    no daemon answers, 130 after Ctrl-C.
    """
    body: dict[str, object] = {}
    if pin:
        body["pin"] = True
    if keep_alive is not None:
        body["keep_alive"] = keep_alive
    _change("load", models, body, detach=detach, as_json=as_json)


@click.command(short_help="Unload models.")
@models_argument
@target_options
@click.option("--force", is_flag=True, help="Cut their streams now, each with a regular last line.")
@_detach
@_json
def unload(*, models: tuple[str, ...], force: bool, detach: bool, as_json: bool) -> None:
    """Unload each MODEL, and wait until its memory is free. Its streams may end first.

    The next request for it loads it again. Ctrl-C takes the demand back where the model has not begun to
    stop.

    Exits with 0 when all are gone, 1 when one is refused or fails, 2 for a wrong command line, 3 when no
    daemon answers, 130 after Ctrl-C.
    """
    _change("unload", models, {"force": True} if force else {}, detach=detach, as_json=as_json)


@click.command(short_help="Load one model, and unload the others.")
@model_argument
@target_options
@_detach
@_json
def switch(*, model: str, detach: bool, as_json: bool) -> None:
    """Load MODEL, and unload all others that are not pinned.

    Ctrl-C takes the demand back, as for load.

    Exits with 0 when it is done, 1 when it is refused or fails, 2 for a wrong command line, 3 when no
    daemon answers, 130 after Ctrl-C.
    """
    _change("switch", (model,), {}, detach=detach, as_json=as_json)


# ----------------------------------------------------------------------
# `modeld pin`, `unpin`: whether a model may be evicted and unloaded by time.

_pin_json = click.option(
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
            row = read(data, ModelBody)
            told = "pinned" if row.pinned else "not pinned"
            screen.show([line(f"{short(row.id)}: {told}, {row.state}")])


@click.command(short_help="Keep models in memory once they are loaded.")
@models_argument
@target_options
@_pin_json
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
@_pin_json
def unpin(*, models: tuple[str, ...], as_json: bool) -> None:
    """Let each MODEL be evicted again, and unloaded by time.

    Exits with 0, 1 when the daemon refuses, 2 for a wrong command line, 3 when no daemon answers.
    """
    _pin(models, pinned=False, as_json=as_json)


# ----------------------------------------------------------------------
# `modeld plan`: what would happen if a model were loaded now. Nothing happens.


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
        answer = read(data, LoadPlan)
    if as_json:
        screen.json(data)
    else:
        screen.show(plan_view(answer, screen.width))
    if not answer.fits:
        raise SystemExit(FAILED)


_PAIRS = (Column("", 0), Column("", 0, least=24, fold=True))


def plan_view(plan: LoadPlan, width: int | None) -> list[RenderableType]:
    """The verdict, and the figures behind it. Pure; a width of None is a pipe."""
    verdict = plan.verdict or ("it fits" if plan.fits else "it does not fit")
    table = grid(_PAIRS, _figures(plan), width)
    table.show_header = False
    return [line(("yes", "bold green") if plan.fits else ("no", "bold red"), f": {verdict}"), table]


def _figures(plan: LoadPlan) -> Iterator[tuple[str, str]]:
    sizes = sorted(msgspec.structs.asdict(plan.footprint).items(), key=lambda it: -it[1])
    parts = ", ".join(f"{name.removesuffix('_mb')} {mib(value)}" for name, value in sizes if value > 0)
    yield "needs", f"{mib(plan.needs_mb)} MiB" + (f" ({parts})" if parts else "")
    if plan.free_mb is not None:
        of_budget = f" of {mib(plan.budget_mb)} MiB" if plan.budget_mb else " MiB"
        yield "free", f"{mib(plan.free_mb)}{of_budget}"
    for word, victims in (("evicts", plan.evicts), ("drains", plan.drains)):
        for victim in victims:
            why = f": {victim.why}" if victim.why else ""
            yield word, f"{short(victim.model_id)}, {mib(victim.mb)} MiB{why}"
    if plan.wait_ms:
        yield "waits", f"about {span(plan.wait_ms / 1000)}"
    if plan.load_ms:
        yield "loads", f"for about {span(plan.load_ms / 1000)}"
