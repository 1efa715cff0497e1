# SPDX-License-Identifier: GPL-3.0-only
"""Meter a key's usage against its limits. Pure.

Tokens are known only when a request ended. Until then it counts with its estimate, so a key that has nothing
left is refused, and what exceeds a limit is at most what the last request took more than was left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from modeld.errors import Problem, QuotaExceeded, RateLimited
from modeld.quotas.client import Client

# ----------------------------------------------------------------------
# A sliding window: how much was used within the last so many seconds. Pure.
#
# Why no library: `limits` (5.8) reads the wall clock itself, so a clock that is set moves its windows, and
# a mock clock does not. Its memory storage starts a thread of its own for each use and keeps an object for
# each
# unit, which for 100,000 tokens a minute is as many. And it refuses an amount that exceeds a limit, where
# tokens must be booked that a request has already taken.

Instant = float
"""Seconds on any monotonic clock."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts by the second in which they were used, oldest first: never more than there are seconds."""

    span_s: int = 60
    used_in: tuple[tuple[int, int], ...] = ()


def amount_used(window: Window, now: Instant) -> int:
    """Return what was used within the span. A second counts until all of it is `span_s` ago."""
    return sum(amount for second, amount in window.used_in if second + 1 + window.span_s > now)


def with_usage(window: Window, now: Instant, amount: int) -> Window:
    """Return the window after `amount` was used now; what is out of the span is forgotten."""
    this = math.floor(now)
    kept = [use for use in window.used_in if use[0] + 1 + window.span_s > now]
    if kept and kept[-1][0] >= this:
        kept[-1] = (kept[-1][0], kept[-1][1] + amount)
    else:
        kept.append((this, amount))
    return msgspec.structs.replace(window, used_in=tuple(kept))


def seconds_until_below(window: Window, now: Instant) -> float:
    """Return after how many seconds less is used than now; 0 if nothing is."""
    live = [second for second, _ in window.used_in if second + 1 + window.span_s > now]
    return live[0] + 1 + window.span_s - now if live else 0.0


def below_in(window: Window, now: Instant, most: int) -> float:
    """Return after how many seconds less than `most` is used, if nothing is used meanwhile."""
    left = amount_used(window, now)
    wait = 0.0
    for second, amount in window.used_in:
        if left < most:
            break
        if second + 1 + window.span_s > now:
            left -= amount
            wait = second + 1 + window.span_s - now
    return wait


# ----------------------------------------------------------------------

DAY_S = 86_400
MINUTE_S = 60


class Today(msgspec.Struct, frozen=True):
    """The calendar day, in UTC."""

    name: str
    """As in 2026-11-22."""
    ends_in_s: float


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """The use of one key."""

    requests: Window = Window()
    tokens: Window = Window()
    day: str = ""
    day_tokens: int = 0
    """Of `day`."""
    running: int = 0
    """Requests that have not ended."""
    reserved: int = 0
    """Tokens that those are estimated to cost."""

    def tokens_on(self, today: Today) -> int:
        """Tokens of today."""
        return self.day_tokens if self.day == today.name else 0


class LimitStatus(msgspec.Struct, frozen=True):
    """One limit and what is left of it. `window_s` and `reset_s` are None where time brings nothing back."""

    policy: str
    unit: str
    quota: int
    left: int
    window_s: int | None = None
    reset_s: float | None = None


def refusal(client: Client, meter: Meter, now: Instant, today: Today) -> Problem | None:
    """Return why another request of this key is refused, or None.

    Too many at once; too many within a minute; the tokens of the minute, or those of the day
    are used up, counting what requests inside will cost.
    """
    if client.concurrent_requests is not None and meter.running >= client.concurrent_requests:
        return RateLimited(
            f'the key "{client.name}" has {meter.running} requests under way, and may have '
            f"{client.concurrent_requests} at once; wait until one has ended",
            details={"policy": "concurrent", "quota": client.concurrent_requests},
        ).as_problem()
    most = client.requests_per_minute
    if most is not None and amount_used(meter.requests, now) >= most:
        wait = max(1, math.ceil(below_in(meter.requests, now, most)))
        return RateLimited(
            f'the key "{client.name}" may send {most} requests a minute; try again in {wait} s',
            details={"policy": "requests", "quota": most},
            retry_after_s=wait,
        ).as_problem()
    most = client.tokens_per_minute
    if most is not None and amount_used(meter.tokens, now) + meter.reserved >= most:
        wait = max(1, math.ceil(below_in(meter.tokens, now, most)))
        return RateLimited(
            f'the key "{client.name}" may use {most} tokens a minute: '
            f"{amount_used(meter.tokens, now)} are used, "
            f"and its requests under way may take {meter.reserved}; try again in {wait} s",
            details={"policy": "tokens", "quota": most},
            retry_after_s=wait,
        ).as_problem()
    most = client.tokens_per_day
    if most is not None and meter.tokens_on(today) + meter.reserved >= most:
        wait = max(1, math.ceil(today.ends_in_s)) if meter.tokens_on(today) >= most else 1
        return QuotaExceeded(
            f'the key "{client.name}" may use {most} tokens a day: {meter.tokens_on(today)} are used, and '
            f"its requests under way may take {meter.reserved}; the day ends at 24:00 UTC, "
            f"try again in {wait} s",
            details={"policy": "day", "quota": most},
            retry_after_s=wait,
        ).as_problem()
    return None


def request_begun(meter: Meter, cost: int, now: Instant) -> Meter:
    """Return the meter after a request began that is estimated to cost so many tokens."""
    return replace(
        meter,
        requests=with_usage(meter.requests, now, 1),
        running=meter.running + 1,
        reserved=meter.reserved + cost,
    )


def request_ended(meter: Meter, cost: int, tokens: int, now: Instant, today: Today) -> Meter:
    """Return the meter after that request ended, and really took so many tokens."""
    return replace(
        meter,
        tokens=with_usage(meter.tokens, now, tokens) if tokens else meter.tokens,
        day=today.name,
        day_tokens=meter.tokens_on(today) + tokens,
        running=meter.running - 1,
        reserved=meter.reserved - cost,
    )


def limit_statuses(client: Client, meter: Meter, now: Instant, today: Today) -> Iterator[LimitStatus]:
    """Yield what is left of each limit that the key has."""
    if (most := client.requests_per_minute) is not None:
        left = max(0, most - amount_used(meter.requests, now))
        yield LimitStatus(
            "requests", "requests", most, left, MINUTE_S, seconds_until_below(meter.requests, now)
        )
    if (most := client.tokens_per_minute) is not None:
        left = max(0, most - amount_used(meter.tokens, now) - meter.reserved)
        yield LimitStatus("tokens", "tokens", most, left, MINUTE_S, seconds_until_below(meter.tokens, now))
    if (most := client.tokens_per_day) is not None:
        left = max(0, most - meter.tokens_on(today) - meter.reserved)
        yield LimitStatus("day", "tokens", most, left, DAY_S, today.ends_in_s)
    if (most := client.concurrent_requests) is not None:
        yield LimitStatus("concurrent", "concurrent-requests", most, max(0, most - meter.running))
