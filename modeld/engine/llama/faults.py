# SPDX-License-Identifier: GPL-3.0-only
"""Pure: decodes that failed one after the other, and what is said of them."""

from __future__ import annotations

from modeld.errors import EngineFailed

MOST = 3
"""Failed decodes in a row after which the engine as a whole counts as broken."""


class Faults:
    """Counts failures of one engine."""

    def __init__(self, model_id: str) -> None:
        self._id = model_id
        self._count = 0

    def passed(self) -> None:
        """Take note of a decode that did not fail."""
        self._count = 0

    def failed(self, reason: str) -> EngineFailed:
        """Take note of one that failed; return what is told to the request that is given up for it.

        Raises: EngineFailed when there were too many in a row.
        """
        self._count += 1
        if self._count >= MOST:
            raise EngineFailed(f"{self._id}: {reason}, {self._count} times in a row; load the model anew")
        return self.given_up(reason)

    def given_up(self, reason: str) -> EngineFailed:
        """Return what is told to a request that is given up for a reason that is no failure of the engine."""
        return EngineFailed(f"{self._id}: {reason}; send the request again")
