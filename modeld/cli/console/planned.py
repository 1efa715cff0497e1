# SPDX-License-Identifier: GPL-3.0-only
"""How a plan, and the end of an operation, are told in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.text import Text

from modeld.cli.console.answers import Operation, Plan, Status, Victim
from modeld.cli.console.figures import mib, plain, short, span
from modeld.cli.console.grid import Column, grid

_PAIRS = (Column("", 0), Column("", 0, least=24, fold=True))
_DONE = {"load": "loaded", "unload": "unloaded", "switch": "switched to it"}
_AT_ONCE_S = 0.01
"""What took less was so already."""
_TRYING = {"load": "load", "unload": "unload", "switch": "switch"}


def plan_view(plan: Plan, width: int | None) -> list[RenderableType]:
    """The verdict, and the figures behind it."""
    word = "yes" if plan.fits else "no"
    verdict = plain(plan.verdict) or ("it fits" if plan.fits else "it does not fit")
    rows = [(name, text) for name, text in _figures(plan)]
    table = grid(_PAIRS, rows, width)
    table.show_header = False
    first = Text.assemble((word, "bold green" if plan.fits else "bold red"), f": {verdict}")
    return [first, table]


def _figures(plan: Plan) -> Iterator[tuple[str, str]]:
    parts = _parts(plan.footprint)
    yield "needs", f"{mib(plan.needs_mb)} MiB" + (f" ({parts})" if parts else "")
    if plan.free_mb is not None:
        of_budget = f" of {mib(plan.budget_mb)} MiB" if plan.budget_mb else " MiB"
        yield "free", f"{mib(plan.free_mb)}{of_budget}"
    for victim in plan.evicts:
        yield "evicts", _victim(victim)
    for busy in plan.drains:
        yield "drains", _victim(busy) if isinstance(busy, Victim) else short(busy)
    if plan.wait_ms:
        yield "waits", f"about {span(plan.wait_ms / 1000)}"
    if plan.load_ms:
        yield "loads", f"for about {span(plan.load_ms / 1000)}"


def _parts(footprint: Mapping[str, object]) -> str:
    """Write what the need is made of, largest first."""
    sizes = {
        name.removesuffix("_mb"): value
        for name, value in footprint.items()
        if isinstance(value, float | int) and not isinstance(value, bool) and name != "total_mb" and value > 0
        if name.endswith("_mb")
    }
    ordered = sorted(sizes.items(), key=lambda it: -it[1])
    return ", ".join(f"{plain(name).replace('_', ' ')} {mib(value)}" for name, value in ordered)


def _victim(victim: Victim) -> str:
    why = f": {plain(victim.why)}" if victim.why else ""
    return f"{short(victim.model_id)}, {mib(victim.mb)} MiB{why}"


def outcome(operation: Operation) -> str:
    """Say in one line how an operation ended."""
    name = short(operation.model)
    if operation.state == "failed":
        reason = operation.error or operation.reason or "the daemon gives no reason"
        return f"{name}: the {_TRYING.get(operation.kind, operation.kind)} failed: {plain(reason)}"
    if operation.state == "cancelled":
        reason = plain(operation.error or operation.reason)
        return f"{name}: the {operation.kind} was given up" + (f": {reason}" if reason else "")
    text = f"{name}: {_DONE.get(operation.kind, operation.kind)}"
    took = (operation.ended_unix or operation.created_unix) - operation.created_unix
    if took >= _AT_ONCE_S:
        text += f" in {span(took)}"
    if operation.evicted:
        text += "; gone for it: " + ", ".join(map(short, operation.evicted))
    return text


def under_way(operation: Operation) -> str:
    """Say in a few words what an operation is doing; the reason tells of waiting."""
    reason = plain(operation.reason)
    if operation.phase in {"queued", "evicting", "draining"} and reason:
        return f"{operation.phase}: {reason}"
    return operation.phase or operation.state


def taken_back(operation: Operation, status: Status) -> str:
    """Say what became of an operation that was cancelled, and of a load that others wait for."""
    name = short(operation.model)
    if operation.state == "done":
        return f"{name}: too late, the {operation.kind} is done"
    text = f"{name}: the {operation.kind} was taken back"
    waiting = sum(it.queue_len for it in status.instances if it.model_id == operation.model)
    if waiting and operation.kind != "unload":
        who = "1 request waits" if waiting == 1 else f"{waiting} requests wait"
        text += f", but {who} for the model: its load goes on"
    if operation.evicted:
        text += "; gone for it: " + ", ".join(map(short, operation.evicted))
    return text
