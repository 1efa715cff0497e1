# SPDX-License-Identifier: GPL-3.0-only
"""Tells an engine that hangs from one that is slow. Knows no clock but its own looks."""

from __future__ import annotations

LOOKS = 8
"""So many looks without a sign of life make a stall; they are `stall_timeout / LOOKS` apart.

Looks are counted, not seconds: when the daemon itself did not run for a while (stopped, or starved of
CPU), that is one look, and the signs that waited meanwhile are read before the next one.
"""


class StallWatch:
    """Counts looks at a worker between signs of life."""

    def __init__(self) -> None:
        self._silent = 0
        self._busy = False
        self._pulse: object = None

    def sign(self) -> None:
        """Take in a sign of life: a message."""
        self._silent = 0

    def look(self, *, busy: bool, pulse: object = None) -> bool:
        """Look once more; return whether it hangs.

        `busy`: it has something to do. `pulse`: a value that changes while it works at something it sends
        no message about (a load); None where only messages count.
        """
        moved = pulse is not None and pulse != self._pulse
        self._pulse = pulse
        if not busy or not self._busy or moved:
            self._silent = 0
        else:
            self._silent += 1
        self._busy = busy
        return self._silent >= LOOKS
