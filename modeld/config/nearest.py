# SPDX-License-Identifier: GPL-3.0-only
"""The nearest known name, for error messages."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches


def nearest(name: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that looks most like `name`, or None when none does."""
    wanted = name[:80].lower().replace("-", "_")
    by_form = {other.lower().replace("-", "_"): other for other in known}
    found = get_close_matches(wanted, by_form, n=1, cutoff=cutoff)
    return by_form[found[0]] if found else None


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return "; did you mean X?" or the empty text."""
    other = nearest(name, known)
    return f"; did you mean {other}?" if other else ""
