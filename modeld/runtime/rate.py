# SPDX-License-Identifier: GPL-3.0-only
"""How many tokens a second an instance brings."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0
"""Tokens per second are those of the last ten seconds, idle ones left out."""


class TokenRate:
    """Counts tokens by whole seconds of a clock that the caller reads."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[float, int]] = deque()
        """Begin of each second in which there were tokens, and how many; oldest first."""

    def add(self, tokens: int, now: float) -> None:
        """Take in that so many tokens came."""
        second = float(int(now))
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + tokens)
        else:
            self._seconds.append((second, tokens))
            self._forget_old(now)

    def per_second(self, now: float) -> float:
        """Return the average over those of the last ten seconds that had tokens."""
        self._forget_old(now)
        return sum(count for _, count in self._seconds) / max(1, len(self._seconds))

    def _forget_old(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] < now - WINDOW_S:
            self._seconds.popleft()
