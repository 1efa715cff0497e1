# SPDX-License-Identifier: GPL-3.0-only
"""Index the tokens of all sequences, to find the longest reusable prefix of a prompt. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.int32]
"""Token ids, one dimension."""
WORTH_WAITING = 64
"""Tokens that another prompt is about to decode for this one, from which it waits for them."""


class PrefixIndex:
    """The books of a prefix cache, however its cells lie.

    Attributes:
      cap: cells that may be retained; 0: nothing is taken over from anybody.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self._retained: dict[int, TokenArray] = {}
        """By sequence, the least recently used first."""
        self._prompts: dict[int, TokenArray] = {}
        """Of running sequences."""

    @property
    def retained(self) -> tuple[int, ...]:
        """Retained sequences, least recently used first."""
        return tuple(self._retained)

    def tokens(self, sequence: int) -> TokenArray:
        """Return what a retained sequence holds."""
        return self._retained[sequence]

    def beginning_of(self, prompt: TokenArray, decoded: Mapping[int, int]) -> tuple[int | None, int] | None:
        """Return which sequence has the longest beginning of a prompt, and how long it is; (None, 0): none.

        `decoded` is how far the prompts of running sequences are. Returns None where one of them is about to
        have so much more of it that it is worth waiting for.
        """
        if not self.cap:
            return None, 0
        source, shared = longest_prefix(prompt, self._retained, self._prompts, decoded)
        if reusable_prefix(prompt, self._prompts, decoded) >= shared + WORTH_WAITING:
            return None
        return source, shared


def longest_prefix(
    prompt: TokenArray,
    retained: dict[int, TokenArray],
    prompts: Mapping[int, TokenArray],
    decoded: Mapping[int, int],
) -> tuple[int | None, int]:
    """Return the sequence with the longest common beginning, and its length; (None, 0) without any.

    Args: what is `retained` and what runs (`prompts`), by sequence, and how far the latter are `decoded`.
    Among equals a retained sequence wins, and the most recently used (the last) of those.
    """
    source: int | None = None
    best = 0
    wanted = prompt[:-1]
    for sequence in reversed(retained):
        held = retained[sequence]
        if best < len(wanted) and best < len(held) and held[best] == wanted[best]:
            length = common_prefix(wanted, held)
            if length > best:
                source, best = sequence, length
    for sequence, held in prompts.items():
        length = common_prefix(wanted, held[: decoded.get(sequence, 0)])
        if length > best:
            source, best = sequence, length
    return source, best


def reusable_prefix(prompt: TokenArray, prompts: Mapping[int, TokenArray], decoded: Mapping[int, int]) -> int:
    """Return how many tokens of the prompt will be there when the running prompts are decoded."""
    under_way = (
        held for sequence, held in prompts.items() if sequence in decoded and decoded[sequence] < len(held)
    )
    return max((common_prefix(prompt[:-1], held) for held in under_way), default=0)


def common_prefix(one: TokenArray, other: TokenArray) -> int:
    """Return how many tokens two texts have in common from their beginning."""
    most = min(len(one), len(other))
    if not most:
        return 0
    differ = one[:most] != other[:most]
    first = int(differ.argmax())
    return first if differ[first] else most
