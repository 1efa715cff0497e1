# SPDX-License-Identifier: GPL-3.0-only
"""Lay out instances, models, decisions and operations as tables. Pure.

`width` is the terminal's; None is a pipe, where each row is a line and nothing is left out.
`now` is the daemon's clock, seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import tzinfo
from typing import TypeVar

import msgspec
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from modeld.cli.console.format import NOTHING, clock, count, line, mib, share, short, size, span
from modeld.cli.console.screen import as_text
from modeld.dialects.native.listing import ModelBody
from modeld.domain.instance_state import InstanceState
from modeld.domain.operation import OperationStatus
from modeld.domain.status import DaemonStatus, Decision, InstanceStatus

# ----------------------------------------------------------------------
# Tables that fit: columns have a rank, and the least important ones go where a terminal is narrow.
#
# Pure. A table without a width (a pipe, a file) has every column at its full width, one line a row.

_CUT = "\N{HORIZONTAL ELLIPSIS}"
GAP = 2
"""Blanks between two columns."""


class Column(msgspec.Struct, frozen=True):
    """A column of a grid."""

    title: str
    rank: int
    """0 is never left out; of the others the one with the highest rank goes first."""
    right: bool = False
    """Numbers stand at the right."""
    least: int | None = None
    """A column with a least width may be narrower than its contents; others may not."""
    fold: bool = False
    """What does not fit goes on in the next line, instead of being cut."""
    middle: bool = False
    """What does not fit is cut in its middle: names of models differ at both ends."""


Cell = str | tuple[str, str]
"""Text, or text and its style; `grid` writes out what a terminal would obey."""
Row = Sequence[Cell]
Item = TypeVar("Item")
Listing = Sequence[tuple[Column, Callable[[Item], Cell]]]
"""Columns, and what they show of an item; nothing is a dash."""


def grid(columns: Sequence[Column], rows: Iterable[Row], width: int | None) -> Table:
    """Return a table of at most `width` cells, where it can be that narrow. No width: all of it."""
    lines = [[line(cell) for cell in row] for row in rows]
    natural = [
        max([cell_len(column.title), *(row[place].cell_len for row in lines)])
        for place, column in enumerate(columns)
    ]
    widths = dict(enumerate(natural))
    if width is not None:
        telling = [
            place
            for place, column in enumerate(columns)
            if column.rank == 0 or any(row[place].plain != NOTHING for row in lines)
        ]
        widths = fit(columns, natural, width, telling)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for place, wide in widths.items():
        column = columns[place]
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            width=wide,
            no_wrap=not column.fold,
            overflow="fold" if column.fold else "ellipsis",
        )
        if column.middle:
            for row in lines:
                row[place].plain = cut_in_the_middle(row[place].plain, wide)
    for row in lines:
        table.add_row(*(row[place] for place in widths))
    return table


def figures(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a plain table: a name at the left of each row, then figures at the right."""
    columns = [Column("", 0, right=place > 0) for place in range(len(rows[0]))]
    table = grid(columns, rows, None)
    table.show_header = False
    return as_text([table]).splitlines()


def listing(columns: Listing[Item], items: Iterable[Item], width: int | None) -> Table:
    """Return a table with a row for each item; as `grid`."""
    rows = [[shown(item) or NOTHING for _, shown in columns] for item in items]
    return grid([column for column, _ in columns], rows, width)


def fit(
    columns: Sequence[Column], natural: Sequence[int], width: int, places: Sequence[int]
) -> dict[int, int]:
    """Choose which of the columns at `places` are shown, and how wide: place -> cells.

    Columns go by rank until the rest fits at its least; what is left over is given to those that are
    narrower than their contents, the most important first. Rank 0 stays, whatever the width.
    """
    least = [
        wide if column.least is None else min(wide, max(column.least, cell_len(column.title)))
        for column, wide in zip(columns, natural, strict=True)
    ]
    shown = list(places)
    while _total(least, shown) > width:
        droppable = [place for place in shown if columns[place].rank > 0]
        if not droppable:
            break
        shown.remove(max(droppable, key=lambda place: (columns[place].rank, place)))
    widths = {place: least[place] for place in shown}
    spare = width - _total(least, shown)
    for place in sorted(shown, key=lambda place: (columns[place].rank, place)):
        more = min(natural[place] - widths[place], max(0, spare))
        widths[place] += more
        spare -= more
    return widths


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[place] for place in shown) + GAP * (len(shown) - 1)


def cut_in_the_middle(text: str, width: int) -> str:
    """Return the text with at most `width` cells, its beginning and its end kept."""
    if cell_len(text) <= width:
        return text
    keep = max(0, width - 1)
    head = set_cell_size(text, keep // 2).rstrip()
    tail = set_cell_size(text[::-1], keep - keep // 2).rstrip()[::-1]
    return f"{head}{_CUT}{tail}"


# ----------------------------------------------------------------------

STYLES = {
    "ready": "green",
    "loading": "cyan",
    "queued": "yellow",
    "draining": "magenta",
    "error": "bold red",
    "stopped": "dim",
    "running": "cyan",
    "done": "green",
    "failed": "bold red",
    "cancelled": "yellow",
}
_BAD_ACTIONS = frozenset({"load_failed", "died", "stuck", "refuse"})
_ASK_WHY = frozenset({"error", "queued", "loading", "draining"})
_HOLDING = frozenset(state for state in InstanceState if state.holds_memory)


def ps_table(status: DaemonStatus, width: int | None, *, everything: bool = False) -> Table:
    """The instances: those that hold memory, wait for it or failed; with `everything`, all."""
    last, now = _last_decisions(status), status.server_time_unix
    columns: Listing[InstanceStatus] = (
        (Column("MODEL", 0, least=20, middle=True), lambda it: short(it.model_id)),
        (Column("STATE", 0), lambda it: (_state(it), STYLES.get(it.state, ""))),
        (Column("MIB", 1, right=True), lambda it: mib(it.est_vram_mb) if it.state in _HOLDING else ""),
        (Column("BUSY", 2, right=True), lambda it: f"{it.busy_slots}/{it.slots}" if it.slots else ""),
        (
            Column("WAITING", 2, right=True),
            lambda it: (str(it.queue_len), "yellow" if it.queue_len else ""),
        ),
        (Column("ETA", 4, right=True), lambda it: "" if it.eta_ms is None else span(it.eta_ms / 1000)),
        (
            Column("TOK/S", 3, right=True),
            lambda it: f"{it.tokens_per_second:.1f}" if it.tokens_per_second else "",
        ),
        (
            Column("IDLE", 4, right=True),
            lambda it: span(now - it.last_used_unix) if it.last_used_unix and not it.inflight else "",
        ),
        (Column("MEASURED", 6, right=True), lambda it: mib(it.measured_mb)),
        (Column("TTL", 6, right=True), lambda it: span(it.ttl_s)),
        (Column("PIN", 5), lambda it: "yes" if it.pinned else ""),
        (Column("CELLS", 8, right=True), lambda it: count(it.kv_cells)),
        (Column("LOAD", 7, right=True), lambda it: span(it.load_ms / 1000) if it.load_ms else ""),
        (Column("RESTARTS", 8, right=True), lambda it: (str(it.restarts), "red") if it.restarts else ""),
        (Column("PID", 9, right=True), lambda it: "" if it.pid is None else str(it.pid)),
        (Column("WHY", 7, least=24), lambda it: _why(it, last.get(it.model_id))),
    )
    shown = (it for it in status.instances if everything or it.state != InstanceState.STOPPED or it.queue_len)
    return listing(columns, shown, width)


def _state(it: InstanceStatus) -> str:
    loads = it.state == InstanceState.LOADING and it.load_progress is not None
    return f"loading {share(it.load_progress or 0)}" if loads else it.state


def _why(it: InstanceStatus, last: Decision | None) -> str:
    if it.state == InstanceState.ERROR and it.last_error:
        return it.last_error
    return "" if last is None else last.reason


def reasons(status: DaemonStatus) -> list[Text]:
    """A line for each model whose state asks for a reason, where the table has no room for them."""
    last = _last_decisions(status)
    told = [(it, _why(it, last.get(it.model_id))) for it in status.instances if it.state in _ASK_WHY]
    return [line((f"{short(it.model_id)}: {why}", STYLES[it.state])) for it, why in told if why]


def _last_decisions(status: DaemonStatus) -> dict[str, Decision]:
    # That a load succeeded is seen from the state; why it was begun is not.
    return {it.model_id: it for it in status.decisions if it.action != "ready"}


_MODELS: Listing[ModelBody] = (
    (Column("MODEL", 0, least=20, middle=True), lambda it: short(it.id)),
    (
        Column("STATE", 1),
        lambda it: ("damaged", "bold red") if it.error else (it.state, STYLES.get(it.state, "")),
    ),
    (Column("QUANT", 3), lambda it: it.quant),
    (Column("PARAMS", 4, right=True), lambda it: count(it.parameters)),
    (Column("FAMILY", 6), lambda it: it.family),
    (Column("FILE", 3, right=True), lambda it: size(it.size_bytes)),
    (Column("MIB", 2, right=True), lambda it: mib(it.est_vram_mb) if it.est_vram_mb else ""),
    (Column("CONTEXT", 5, right=True), lambda it: count(it.context_length)),
    (Column("CELLS", 7, right=True), lambda it: count(it.kv_cells)),
    (Column("SLOTS", 7, right=True), lambda it: str(it.slots) if it.slots else ""),
    (Column("MARKS", 4), lambda it: ",".join(["default"] * it.default + ["pinned"] * it.pinned)),
    (
        Column("ALIASES", 6, least=8),
        lambda it: ",".join(alias for alias in it.aliases if alias not in {it.id, short(it.id)}),
    ),
    (Column("ERROR", 1, least=16), lambda it: (it.error, "red") if it.error else ""),
)


def models_table(models: Iterable[ModelBody], width: int | None) -> Table:
    """What there is to serve."""
    return listing(_MODELS, models, width)


def decisions_table(
    decisions: Iterable[Decision], now: float, width: int | None, zone: tzinfo | None = None
) -> Table:
    """What the scheduler decided, and why; newest last."""
    columns: Listing[Decision] = (
        (Column("TIME", 0), lambda it: clock(it.at_unix, zone)),
        (Column("AGO", 3, right=True), lambda it: span(now - it.at_unix)),
        (Column("ACTION", 0), lambda it: (it.action, "red" if it.action in _BAD_ACTIONS else "")),
        (Column("MODEL", 1, least=12, middle=True), lambda it: short(it.model_id)),
        (Column("REASON", 0, least=20, fold=True), _reason),
    )
    return listing(columns, decisions, width)


def _reason(it: Decision) -> str:
    times = it.numbers.get("times", 1)
    return it.reason + (f" ({times:.0f} times)" if times > 1 else "")


def operations_table(
    operations: Iterable[OperationStatus], now: float, width: int | None, zone: tzinfo | None = None
) -> Table:
    """Loads, unloads and switches that were asked for."""
    columns: Listing[OperationStatus] = (
        (Column("OPERATION", 0), lambda it: it.id),
        (Column("KIND", 1), lambda it: it.kind),
        (Column("MODEL", 1, least=12, middle=True), lambda it: short(it.model)),
        (Column("STATE", 0), lambda it: (it.state, STYLES.get(it.state, ""))),
        (Column("PHASE", 4), lambda it: it.phase),
        (Column("DONE", 2, right=True), lambda it: share(it.progress)),
        (Column("BEGAN", 5), lambda it: clock(it.created_unix, zone)),
        (
            Column("TOOK", 3, right=True),
            lambda it: span((now if it.ended_unix is None else it.ended_unix) - it.created_unix),
        ),
        (Column("REASON", 2, least=20), _for_whom),
    )
    return listing(columns, operations, width)


def _for_whom(it: OperationStatus) -> str:
    asked = f"asked by {it.key}" if it.key else ""
    return "; ".join(filter(None, (it.error or it.reason, asked)))
