# SPDX-License-Identifier: GPL-3.0-only
"""Lay out the daemon's state on one page. Pure.

`width` is the terminal's; None is a pipe, where each row is a line and nothing is left out.
`place` is where the daemon was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo

from rich.console import RenderableType
from rich.text import Text

from modeld.cli.console.format import line, mib, plain, share, short, span
from modeld.cli.console.tables import STYLES, decisions_table, ps_table, reasons
from modeld.domain.operation import OperationKind, OperationState, OperationStatus, Phase
from modeld.domain.status import DaemonStatus, Decision, DeviceStatus

_SHOWN_DECISIONS = 10


def head(status: DaemonStatus, place: str) -> list[Text]:
    """The daemon in three lines; more when something is wrong, or should be mended."""
    lines = [
        line(f"modeld {status.version} at {place}: ", (status.state, STYLES.get(status.state, "")),
              f", up {span(status.uptime_seconds)}"),
        line(_memory(status)),
        line(_requests(status)),
    ]  # fmt: skip
    if status.error:
        lines.append(line((f"error: {status.error}", "bold red")))
    if status.shortage:
        lines.append(line((f"less memory than set: {status.shortage}", "yellow")))
    lines += [line((f"warning: {warning}", "yellow")) for warning in status.warnings]
    return lines


def _memory(status: DaemonStatus) -> str:
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


def _requests(status: DaemonStatus) -> str:
    moves = f"{_some(status.loads_total, 'load')}, {_some(status.evictions_total, 'eviction')} so far"
    return f"requests: {status.inflight_total} in slots, {status.queued_total} waiting; {moves}"


def _some(amount: int, noun: str) -> str:
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def ps_view(
    status: DaemonStatus, place: str, width: int | None, *, everything: bool = False
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
    status: DaemonStatus, place: str, width: int | None, zone: tzinfo | None = None
) -> list[RenderableType]:
    """`modeld status`: everything that helps at three in the morning, on one page."""
    parts: list[RenderableType] = [*head(status, place)]
    parts += [line(_device(it)) for it in status.devices]
    if status.last_error:
        parts.append(line((f"last error: {status.last_error}", "red")))
    table = ps_table(status, width)
    parts += [Text(""), table if table.row_count else Text("no model is loaded", style="dim")]
    if status.decisions:
        last = status.decisions[-_SHOWN_DECISIONS:]
        parts += [Text(""), decisions_table(last, status.server_time_unix, width, zone)]
    return parts


def _device(it: DeviceStatus) -> str:
    text = f"device {it.name}: {mib(it.free_mb)} of {mib(it.total_mb)} MiB free"
    if it.effective_mb is None:
        return text
    return (
        f"{text}, models hold {mib(it.ours_mb)} and others {mib(it.foreign_mb)}; models may hold "
        f"{mib(it.effective_mb)}"
    )


def newest(decisions: Sequence[Decision], names: frozenset[str], most: int) -> Sequence[Decision]:
    """The last `most` decisions, of these models only where names are given."""
    chosen = [it for it in decisions if not names or it.model_id in names]
    return chosen[-most:]


# ----------------------------------------------------------------------
# How an operation is told in words. Pure.

_DONE = {
    OperationKind.LOAD: "loaded",
    OperationKind.UNLOAD: "unloaded",
    OperationKind.SWITCH: "switched to it",
}
_AT_ONCE_S = 0.01
"""What took less was so already."""


def outcome(operation: OperationStatus) -> str:
    """Say in one line how an operation ended."""
    name, kind = short(operation.model), plain(operation.kind)
    reason = plain(operation.error or operation.reason)
    if operation.state == OperationState.FAILED:
        return f"{name}: the {kind} failed: {reason or 'the daemon gives no reason'}"
    if operation.state == OperationState.CANCELLED:
        return f"{name}: the {kind} was given up" + (f": {reason}" if reason else "")
    text = f"{name}: {_DONE.get(operation.kind, kind)}"
    took = (operation.ended_unix or operation.created_unix) - operation.created_unix
    if took >= _AT_ONCE_S:
        text += f" in {span(took)}"
    return text + _gone(operation)


def under_way(operation: OperationStatus) -> str:
    """Say in a few words what an operation is doing; the reason tells of waiting."""
    waits = operation.phase in {Phase.QUEUED, Phase.EVICTING, Phase.DRAINING} and operation.reason
    return plain(f"{operation.phase}: {operation.reason}" if waits else operation.phase or operation.state)


def taken_back(operation: OperationStatus, status: DaemonStatus) -> str:
    """Say what became of an operation that was cancelled, and of a load that others wait for."""
    name, kind = short(operation.model), plain(operation.kind)
    if operation.state == OperationState.DONE:
        return f"{name}: too late, the {kind} is done"
    text = f"{name}: the {kind} was taken back"
    waiting = sum(it.queue_len for it in status.instances if it.model_id == operation.model)
    if waiting and operation.kind != OperationKind.UNLOAD:
        who = "1 request waits" if waiting == 1 else f"{waiting} requests wait"
        text += f", but {who} for the model: its load goes on"
    return text + _gone(operation)


def _gone(operation: OperationStatus) -> str:
    return "; gone for it: " + ", ".join(map(short, operation.evicted)) if operation.evicted else ""
