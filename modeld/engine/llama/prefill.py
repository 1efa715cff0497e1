# SPDX-License-Identifier: GPL-3.0-only
"""Pure: how many prompt tokens the next batch takes, from how long the last ones took.

Alone, a prompt goes in whole batches. Beside running streams each prompt token lengthens the gap
between their tokens, so a chunk gets the time that is left until a bound:

    chunk = (max(FLOOR_S, STRETCH * decode step) - decode step) / seconds per prompt token

within [SMALLEST, batch]. The two times are moving averages of what was measured here, since they
depend on the machine, the model and the depth of the cache.
"""

from __future__ import annotations

FLOOR_S = 0.1
"""A gap of this many seconds between tokens is always allowed."""
STRETCH = 2.5
"""And one of so many usual gaps."""
SMALLEST = 16
"""Prompt tokens a step at the least: a prefill always moves."""
_WEIGHT = 0.3
"""Of the newest measurement in the moving averages."""


class ChunkRule:
    """Chooses chunks for one engine and learns from its steps. Times in seconds."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._decode_s = 0.0
        self._token_s = 0.0

    def budget(self, decoding: int) -> int:
        """Return how many prompt tokens may join `decoding` streams in the next batch."""
        room = self._batch - decoding
        if not decoding:
            return room
        if not self._token_s:
            return min(room, 4 * SMALLEST)
        spare = max(FLOOR_S, STRETCH * self._decode_s) - self._decode_s
        return min(room, max(SMALLEST, int(min(room, spare / self._token_s))))

    def learn(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """Take in how long a finished step took."""
        if not prompt_tokens:
            self._decode_s = _mix(self._decode_s, seconds)
            return
        prompt_s = seconds - (self._decode_s if decoding else 0.0)
        self._token_s = _mix(self._token_s, max(prompt_s, 0.1 * seconds) / prompt_tokens)


def _mix(average: float, value: float) -> float:
    return average + _WEIGHT * (value - average) if average else value
