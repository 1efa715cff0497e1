# SPDX-License-Identifier: GPL-3.0-only
"""Decide when a running decode may be interrupted for a client that left."""

from __future__ import annotations

from modeld.engine.protocol import Output, TokenOutput, VectorOutput


class InterruptRule:
    """When a cancel may interrupt the decode under way.

    An interrupt costs all slots the work of the step. So that clients who leave cannot starve those
    who stay, a whole step must come between two interrupts, unless nobody else is in a slot.
    """

    def __init__(self) -> None:
        self._pending = False
        self._owed = False

    def may_interrupt(self, *, alone: bool) -> bool:
        """Whether to interrupt now; if so, that is noted."""
        if not alone and (self._pending or self._owed):
            return False
        self._pending = True
        return True

    def stepped(self, outputs: tuple[Output, ...]) -> None:
        """Take in what a step brought: nothing, if it was interrupted or only read a chunk of a prompt."""
        if self._pending and not outputs:
            self._pending, self._owed = False, True
        elif not outputs or any(isinstance(output, TokenOutput | VectorOutput) for output in outputs):
            self._pending = self._owed = False
