# SPDX-License-Identifier: GPL-3.0-only
"""Work that takes long, done in slices between the steps of an engine: what compiles is a generator of parts.

To see that llama.cpp will come to an end with a grammar takes up to a second of a core in Python, which no
thread could do beside the steps: they need the interpreter as well. So nobody's stream waits for longer than
a slice and its last part. Parts take a few ms; the longest are those of the largest grammars there may be:
to turn a schema of 128 KiB into rules (some 50 ms), and to number the rules.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TypeVar

from modeld.domain.request import Constraint
from modeld.engine.llama.constraints.grammar import Grammar, compile_constraint
from modeld.errors import InvalidGrammar

SLICE_S = 0.03
"""Seconds after which no further part is begun: streams have their turn."""

_Made = TypeVar("_Made")


class StillCompiling(Exception):
    """The grammar is not there yet: ask again, for the same."""


def at_once(work: Generator[None, None, _Made]) -> _Made:
    """Do all parts; return what they make."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            made: _Made = end.value
            return made


class Constraints:
    """Compiles what the text of a request must match. Use it from one thread.

    One at a time: the first request that is not ready holds the others up. What was made is kept until
    another is asked for, as its request may have to wait for its prompt.
    """

    def __init__(self) -> None:
        self._constraint: Constraint | None = None
        self._work: Generator[None, None, Grammar] | None = None
        self._made: Grammar | InvalidGrammar = InvalidGrammar("no grammar was asked for")

    def of(self, constraint: Constraint) -> Grammar | InvalidGrammar:
        """Return the grammar of a constraint, or why there is none.

        Raises: StillCompiling.
        """
        if constraint is not self._constraint:
            self._constraint, self._work = constraint, compile_constraint(constraint)
        until = time.perf_counter() + SLICE_S
        while not self._has_ended():
            if time.perf_counter() >= until:
                raise StillCompiling
        return self._made

    def _has_ended(self) -> bool:
        """Do the next part, if there is any; return whether all are done."""
        if self._work is None:
            return True
        try:
            next(self._work)
        except StopIteration as end:
            self._made, self._work = end.value, None
        except InvalidGrammar as error:
            # Without the frames that it came through.
            self._made, self._work = InvalidGrammar(error.message, details=error.details), None
        except BaseException:  # whatever it is: what broke is begun anew, and never taken for no grammar
            self._constraint = self._work = None
            raise
        return self._work is None
