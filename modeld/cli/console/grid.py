# SPDX-License-Identifier: GPL-3.0-only
"""Tables that fit: columns have a rank, and the least important ones go where a terminal is narrow.

Pure. A table without a width (a pipe, a file) has every column at its full width, one line a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from modeld.cli.console.figures import NOTHING

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
"""Text, or text and its style."""
Row = Sequence[Cell]


def text_of(cell: Cell) -> str:
    """Return the text of a cell."""
    return cell if isinstance(cell, str) else cell[0]


def grid(columns: Sequence[Column], rows: Iterable[Row], width: int | None) -> Table:
    """Return a table of at most `width` cells, where it can be that narrow. No width: all of it."""
    rows = list(rows)
    natural = [
        max([cell_len(column.title), *(cell_len(text_of(row[place])) for row in rows)])
        for place, column in enumerate(columns)
    ]
    places = range(len(columns))
    if width is None:
        widths = dict(zip(places, natural, strict=True))
    else:
        telling = [
            place
            for place in places
            if columns[place].rank == 0 or any(text_of(row[place]) != NOTHING for row in rows)
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
    for row in rows:
        table.add_row(*(_rendered(row[place], columns[place], wide) for place, wide in widths.items()))
    return table


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


def _rendered(cell: Cell, column: Column, width: int) -> Text:
    text, style = (cell, "") if isinstance(cell, str) else cell
    return Text(cut_in_the_middle(text, width) if column.middle else text, style=style)


def cut_in_the_middle(text: str, width: int) -> str:
    """Return the text with at most `width` cells, its beginning and its end kept."""
    if cell_len(text) <= width:
        return text
    keep = max(0, width - 1)
    head = set_cell_size(text, keep // 2).rstrip()
    tail = set_cell_size(text[::-1], keep - keep // 2).rstrip()[::-1]
    return f"{head}{_CUT}{tail}"
