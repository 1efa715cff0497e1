# SPDX-License-Identifier: GPL-3.0-only
"""Which columns a table has in how many cells, and how what is too long is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from modeld.cli.console.tables import GAP, Column, cut_in_the_middle, fit

COLUMNS = (Column("A", 0, least=4), Column("B", 1), Column("C", 2), Column("D", 1, least=3))
NATURAL = (10, 5, 5, 8)


@pytest.mark.parametrize(
    ("width", "widths"),
    [
        (100, {0: 10, 1: 5, 2: 5, 3: 8}),
        (34, {0: 10, 1: 5, 2: 5, 3: 8}),
        (33, {0: 10, 1: 5, 2: 5, 3: 7}),
        (23, {0: 4, 1: 5, 2: 5, 3: 3}),
        (22, {0: 10, 1: 5, 3: 3}),
        (12, {0: 5, 1: 5}),
        (10, {0: 10}),
        (1, {0: 4}),
    ],
)
def test_columns_go_by_rank_and_what_is_left_goes_to_the_most_important(
    width: int, widths: dict[int, int]
) -> None:
    """Narrower columns first, then no column of rank 2, then none of rank 1, the last one first."""
    assert fit(COLUMNS, NATURAL, width, range(4)) == widths


@given(st.integers(1, 200), st.lists(st.integers(1, 60), min_size=4, max_size=4))
def test_a_table_is_never_wider_than_it_must_be(width: int, natural: list[int]) -> None:
    """Whatever its contents: it fits, or there is nothing left but what always stays."""
    widths = fit(COLUMNS, natural, width, range(4))
    assert sum(widths.values()) + GAP * (len(widths) - 1) <= width or set(widths) == {0}
    assert all(wide <= max(natural[place], 4) for place, wide in widths.items())


@pytest.mark.parametrize(
    ("text", "width", "cut"),
    [
        ("short", 5, "short"),
        ("tinyllama-1.1b-chat.Q4_K_M", 11, "tinyl\u20264_K_M"),
        ("\u5927" * 10, 7, "\u5927\u2026\u5927"),
        ("abc", 1, "\u2026"),
    ],
)
def test_names_keep_both_ends(text: str, width: int, cut: str) -> None:
    """Quantisations of one model differ at the end."""
    assert cut_in_the_middle(text, width) == cut
    assert cell_len(cut) <= width
