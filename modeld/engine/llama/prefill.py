# SPDX-License-Identifier: GPL-3.0-only
"""Choose how many prompt tokens the next batch takes, and whose, from recent step times. Pure.

Alone, prompts go in whole batches, or in what takes `LONGEST_S`: each chunk is a sign of life, and an engine
that shows none for `stall_timeout` is taken for one that hangs. Alongside running streams each prompt token
lengthens the gap between their tokens, so a chunk gets the time that is left until a bound:

    bound = max(FLOOR_S, STRETCH * usual step), and more where prompts are many (below)
    chunk = (bound - usual step) / seconds per prompt token - PASS

within [SMALLEST, batch], to the nearest TILE. The usual step is that of as many streams without a prompt. The
times are moving averages of what was measured here, since they depend on the machine, the model and the depth
of the cache; a token alone in a batch of hundreds and one alongside streams are told apart. So streams keep
1 / STRETCH of their speed at least, and the prompt has the rest of the time: neither waits for the other.

Who waits for a first token behind another prompt weighs `FIRST_TOKEN` times one who waits for the next: where
prompts outweigh streams the bound grows with their ratio, up to CEILING_S. So requests that arrive together,
and of which the first already runs, are soon all running, which also is the way to the most tokens a second.
Source: docs/performance.md, "A prompt alongside streams".
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_S = 5.0
"""Seconds of a chunk of prompts alone: a 7B model on two cores takes 30 s for a whole batch of 512."""
FLOOR_S = 0.04
"""A gap of this many seconds between tokens is always allowed: no reader sees it."""
STRETCH = 2.6
"""And one of so many usual gaps."""
FIRST_TOKEN = 4
"""A prompt behind the first weighs as much as so many streams."""
CEILING_S = 0.25
"""A gap that many prompts may make together."""
SMALLEST = 8
"""Prompt tokens a step at least: a prefill always moves."""
TILE = 4
"""Prompt tokens alongside streams come in fours: ggml's CPU kernels multiply four in the time of three."""
PASS = 2
"""A pass over the weights for a chunk takes as long as so many of its tokens, whatever their number."""
FIRST = 32
"""Prompt tokens alongside streams as long as nothing was measured."""
_OUTLIER = 2.0
"""Times the average: what takes longer is a machine that stood still, unless the next step takes as long."""
_WEIGHT = 0.2
"""Of the newest measurement in the moving averages."""


class ChunkRule:
    """Chooses chunks for one engine and learns from its steps. Times in seconds."""

    def __init__(self, batch: int, token_s: float = 0.0) -> None:
        """`token_s`: a first guess of what a prompt token takes at most; the warm-up's decode of one."""
        self._batch = batch
        self._guess_s = token_s
        self._usual: dict[int, _Average] = {}
        """Of a step without prompt tokens, by the number of streams."""
        self._alone = _Average()
        """Of a token of prompts alone."""
        self._beside = _Average()
        """Of one alongside streams; the pass counts as tokens, too."""

    def budget(self, decoding: int, prompts: int = 1) -> int:
        """Return how many tokens of so many prompts may join `decoding` streams in the next batch."""
        room = self._batch - decoding
        if not decoding:
            token_s = self._alone.seconds or self._guess_s
            return min(room, max(SMALLEST, int(min(room, LONGEST_S / token_s)))) if token_s else room
        token_s = self._beside.seconds or self._alone.seconds
        usual = self._usual_s(decoding)
        if not token_s or not usual:
            return min(room, FIRST)
        bound = max(FLOOR_S, STRETCH * usual)
        weight = (1 + FIRST_TOKEN * (prompts - 1)) / decoding
        spare = max(bound, min(CEILING_S, bound * weight)) - usual
        tokens = max(0.0, min(room, spare / token_s - PASS))
        return min(room, max(SMALLEST, TILE * round(tokens / TILE)))

    def learn(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """Take in how long a finished step took."""
        if not prompt_tokens:
            self._usual.setdefault(decoding, _Average()).take(seconds)
        elif not decoding:
            self._alone.take(seconds / prompt_tokens)
        else:
            rest = max(seconds - self._usual_s(decoding), 0.1 * seconds)
            self._beside.take(rest / (prompt_tokens + PASS))

    def _usual_s(self, decoding: int) -> float:
        """Return the usual step of so many streams, or of the nearest number that was seen; 0 without any."""
        if not self._usual:
            return 0.0
        return self._usual[min(self._usual, key=lambda seen: abs(seen - decoding))].seconds


class _Average:
    """A moving average of seconds; 0 before the first. One that is far above counts fully the second time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._surprised = False

    def take(self, seconds: float) -> None:
        """Take in a measurement."""
        most = _OUTLIER * self.seconds
        surprising = 0.0 < most < seconds
        counted = most if surprising and not self._surprised else seconds
        self._surprised = surprising
        self.seconds += _WEIGHT * (counted - self.seconds) if self.seconds else counted


def shares(rests: Sequence[int], budget: int) -> list[int]:
    """Divide a budget of tokens among prompts, of which so many tokens are left, the oldest first.

    (1) Prompts that an equal part of the budget finishes are finished: a short one never waits long.
    (2) The others get what is left, the oldest first: of two long ones the first is done as soon as alone.
    The oldest has at least an equal part in every step, whatever arrives behind it; so each prompt moves,
    and none starves.
    """
    granted = [0] * len(rests)
    if not rests:
        return granted
    part = budget // len(rests)
    for place in sorted(range(len(rests)), key=lambda place: rests[place] > part):
        granted[place] = min(rests[place], budget)
        budget -= granted[place]
    return granted
