# SPDX-License-Identifier: GPL-3.0-only
"""Bytes of the budget and, where there are GPUs, of each device: rows of numbers of one length. Pure."""

from __future__ import annotations

Amount = tuple[int, ...]
"""First of the budget; then, where models are placed on devices, of each of those in their order."""


def plus(one: Amount, other: Amount) -> Amount:
    """Return the sum, place by place."""
    return tuple(a + b for a, b in zip(one, other, strict=True))


def minus(one: Amount, other: Amount) -> Amount:
    """Return the difference, place by place."""
    return tuple(a - b for a, b in zip(one, other, strict=True))


def covers(room: Amount, need: Amount) -> bool:
    """Whether there is enough of everything."""
    return all(a >= b for a, b in zip(room, need, strict=True))


def above_zero(one: Amount) -> Amount:
    """Return it with 0 for what is below."""
    return tuple(max(0, a) for a in one)


def is_nothing(missing: Amount) -> bool:
    """Whether nothing is missing anywhere."""
    return all(a <= 0 for a in missing)
