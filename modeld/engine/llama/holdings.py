# SPDX-License-Identifier: GPL-3.0-only
"""What the sequences of a cache hold: prompts of requests that run, and what those that ended left there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.int32]


class Holdings:
    """The books of a prefix cache, however its cells lie."""

    def __init__(self) -> None:
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
