# SPDX-License-Identifier: GPL-3.0-only
"""How figures are written: short, with their unit, and right at the edges of a unit."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone

import pytest

from modeld.cli.console.format import clock, count, mib, plain, share, short, size, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (-3, "0.00s"), (0.421, "0.42s"), (3.46, "3.5s"), (42.4, "42s"), (59.6, "1m"), (60, "1m"),
        (192, "3m12s"), (3600, "1h"), (3601, "1h"), (7503, "2h5m"), (90_000, "1d1h"), (86_460, "1d"),
        (100 * 86400, "100d"),
    ],
)  # fmt: skip
def test_a_span_has_its_two_largest_units(seconds: float | None, text: str) -> None:
    """What would be a third unit is left out, and so is a second one that is zero."""
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1.0KB"), (321_456, "321KB"), (92_000_000, "92MB"),
     (999_600_000, "1.0GB"), (22_100_000_000, "22.1GB"), (4_000_000_000_000, "4000.0GB")],
)  # fmt: skip
def test_sizes_of_files_are_in_units_of_1000(size_bytes: int, text: str) -> None:
    """As hosts of models show them."""
    assert size(size_bytes) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "-"), (256, "256"), (131072, "131072"), (134_515_008, "135M"), (1_100_048_384, "1.1B")],
)
def test_counts_are_short_from_a_million_on(value: int, text: str) -> None:
    """Cells are exact; parameters are told as the field does."""
    assert count(value) == text


def test_the_rest() -> None:
    """MiB with a decimal below 100, percent within its bounds, the time of day in a zone."""
    assert [mib(it) for it in (None, 0.0, 20.58, 99.94, 590.4)] == ["-", "0.0", "20.6", "99.9", "590"]
    assert [share(it) for it in (-1.0, 0.404, 7.0)] == ["0%", "40%", "100%"]
    assert clock(1_700_000_000.9, UTC) == "22:13:20"
    assert clock(1_700_000_000, timezone(timedelta(hours=2))) == "00:13:20"


def test_names_cannot_steer_a_terminal() -> None:
    """Control characters, line ends and directions of writing are written out; the ending is not needed."""
    assert short("a\x1b[2J\n\u202eb.GGUF") == "a\\x1b[2J\\n\\u202eb"
    assert short("folder/x.bin") == "folder/x.bin"
    assert plain("\u00e4 \u5927") == "\u00e4 \u5927"
