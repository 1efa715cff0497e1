# SPDX-License-Identifier: GPL-3.0-only
"""Lay out the daemon's state on one page. Pure.

`width` is the terminal's; None is a pipe, where each row is a line and nothing is left out.
`place` is where the daemon was asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import tzinfo

from rich.console import RenderableType
from rich.text import Text

from modeld.cli.console.api import Decision, Device, Operation, Plan, Status, Victim
from modeld.cli.console.format import mib, plain, share, short, span
from modeld.cli.console.tables import STYLES, Column, decisions_table, grid, ps_table, reasons

_SHOWN_DECISIONS = 10


def head(status: Status, place: str) -> list[Text]:
    """The daemon in three lines; more when something is wrong, or should be mended."""
    lines = [
        _line(f"modeld {status.version} at {place}: ", (status.state, STYLES.get(status.state, "")),
              f", up {span(status.uptime_seconds)}"),
        _line(_memory(status)),
        _line(_requests(status)),
    ]  # fmt: skip
    if status.error:
        lines.append(Text(f"error: {plain(status.error)}", style="bold red"))
    if status.shortage:
        lines.append(Text(f"less memory than set: {plain(status.shortage)}", style="yellow"))
    lines += [Text(f"warning: {plain(warning)}", style="yellow") for warning in status.warnings]
    return lines


def _memory(status: Status) -> str:
    used = mib(status.used_est_mb)
    if status.budget_mb:
        budget = status.budget_mb if status.effective_budget_mb is None else status.effective_budget_mb
        room = max(0.0, budget - status.margin_mb)
        part = share(status.used_est_mb / room) if room else "100%"
        text = f"memory: {used} of {mib(room)} MiB held ({part})"
        if status.margin_mb:
            text += f", {mib(status.margin_mb)} MiB margin"
    else:
        text = f"memory: {used} MiB held, no budget"
    if status.reserved_mb:
        text += f", of it {mib(status.reserved_mb)} MiB loading"
    if status.unaccounted_mb:
        text += f", {mib(status.unaccounted_mb)} MiB unaccounted"
    return text


def _requests(status: Status) -> str:
    moves = f"{_some(status.loads_total, 'load')}, {_some(status.evictions_total, 'eviction')} so far"
    return f"requests: {status.inflight_total} in slots, {status.queued_total} waiting; {moves}"


def _some(amount: int, noun: str) -> str:
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def ps_view(
    status: Status, place: str, width: int | None, *, everything: bool = False
) -> list[RenderableType]:
    """`modeld ps`: on a terminal with the daemon in three lines above."""
    table = ps_table(status, width, everything=everything)
    if width is None:
        return [table]
    if not table.row_count:
        return [*head(status, place), Text(""), Text("no model is loaded", style="dim")]
    parts: list[RenderableType] = [*head(status, place), Text(""), table]
    if all(column.header != "WHY" for column in table.columns) and (told := reasons(status)):
        parts += [Text(""), *told]
    return parts


def status_view(
    status: Status, place: str, width: int | None, zone: tzinfo | None = None
) -> list[RenderableType]:
    """`modeld status`: everything that helps at three in the morning, on one page."""
    parts: list[RenderableType] = [*head(status, place)]
    parts += [_line(_device(it)) for it in status.devices]
    if status.last_error:
        parts.append(Text(f"last error: {plain(status.last_error)}", style="red"))
    table = ps_table(status, width)
    parts += [Text(""), table if table.row_count else Text("no model is loaded", style="dim")]
    if status.decisions:
        last = status.decisions[-_SHOWN_DECISIONS:]
        parts += [Text(""), decisions_table(last, status.server_time_unix, width, zone)]
    return parts


def _device(it: Device) -> str:
    text = f"device {plain(it.name)}: {mib(it.free_mb)} of {mib(it.total_mb)} MiB free"
    if it.effective_mb is None:
        return text
    return (
        f"{text}, models hold {mib(it.ours_mb)} and others {mib(it.foreign_mb)}; models may hold "
        f"{mib(it.effective_mb)}"
    )


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts)


def newest(decisions: Sequence[Decision], names: frozenset[str], most: int) -> Sequence[Decision]:
    """The last `most` decisions, of these models only where names are given."""
    chosen = [it for it in decisions if not names or it.model_id in names]
    return chosen[-most:]


# ----------------------------------------------------------------------
# How a plan, and the end of an operation, are told in words. Pure.

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
