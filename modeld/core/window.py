# SPDX-License-Identifier: GPL-3.0-only
"""A sliding window: how much was used within the last so many seconds. Pure.

Why no library: `limits` (5.8) reads the wall clock itself, so a clock that is set moves its windows, and
a mock clock does not. Its memory storage starts a thread of its own for each use and keeps an object for each
unit, which for 100,000 tokens a minute is as many. And it refuses an amount that exceeds a limit, where
tokens must be booked that a request has already taken.
"""

from __future__ import annotations

import math

import msgspec

Instant = float
"""Seconds on any monotonic clock."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts by the second in which they were used, oldest first: never more than there are seconds."""

    span_s: int = 60
    used_in: tuple[tuple[int, int], ...] = ()


def used(window: Window, now: Instant) -> int:
    """Return what was used within the span. A second counts until all of it is `span_s` ago."""
    return sum(amount for second, amount in window.used_in if second + 1 + window.span_s > now)


def with_use(window: Window, now: Instant, amount: int) -> Window:
    """Return the window after `amount` was used now; what is out of the span is forgotten."""
    this = math.floor(now)
    kept = [use for use in window.used_in if use[0] + 1 + window.span_s > now]
    if kept and kept[-1][0] >= this:
        kept[-1] = (kept[-1][0], kept[-1][1] + amount)
    else:
        kept.append((this, amount))
    return msgspec.structs.replace(window, used_in=tuple(kept))


def less_in(window: Window, now: Instant) -> float:
    """Return after how many seconds less is used than now; 0 if nothing is."""
    live = [second for second, _ in window.used_in if second + 1 + window.span_s > now]
    return live[0] + 1 + window.span_s - now if live else 0.0


def below_in(window: Window, now: Instant, most: int) -> float:
    """Return after how many seconds less than `most` is used, if nothing is used meanwhile."""
    left = used(window, now)
    wait = 0.0
    for second, amount in window.used_in:
        if left < most:
            break
        if second + 1 + window.span_s > now:
            left -= amount
            wait = second + 1 + window.span_s - now
    return wait
