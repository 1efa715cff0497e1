# SPDX-License-Identifier: GPL-3.0-only
"""What the state of a daemon looks like on one page: answers in, lines and tables out. Pure.

`width` is the terminal's; None is a pipe, where each row is a line and nothing is left out.
`place` is where the daemon was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo

from rich.console import RenderableType
from rich.text import Text

from modeld.cli.console.answers import Decision, Device, Status
from modeld.cli.console.figures import mib, plain, share, span
from modeld.cli.console.tables import STYLES, decisions_table, ps_table, reasons

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
