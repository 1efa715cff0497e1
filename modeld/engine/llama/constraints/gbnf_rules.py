# SPDX-License-Identifier: GPL-3.0-only
"""A grammar as numbered rules, as llama.cpp holds it in memory. Pure."""

from __future__ import annotations

import msgspec

Ranges = tuple[tuple[int, int], ...]


class Terminal(msgspec.Struct, frozen=True):
    """A character class; a token matches no character."""

    ranges: Ranges
    negated: bool = False

    def matches(self, code: int) -> bool:
        """Whether the character is in it."""
        return any(low <= code <= high for low, high in self.ranges) is not self.negated


class Rules:
    """Rules as llama.cpp has them: alternatives of symbols, repetitions and groups as rules of their own.

    A symbol is the number of a rule, or -1 less the number of a terminal.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.alternatives: list[list[tuple[int, ...]]] = []
        self.terminals: list[Terminal] = []
        self.starts: list[int] = []
        self._known: dict[Terminal, int] = {}

    def add(self, name: str) -> int:
        """Add a rule without alternatives; return its number."""
        self.names.append(name)
        self.alternatives.append([])
        return len(self.names) - 1

    def terminal(self, terminal: Terminal) -> int:
        """Return the symbol of a terminal."""
        number = self._known.get(terminal)
        if number is None:
            number = self._known[terminal] = len(self.terminals)
            self.terminals.append(terminal)
        return -1 - number

    def repeated(self, name: str, what: tuple[int, ...], least: int, most: int | None) -> tuple[int, ...]:
        """Return the symbols that `what{least,most}` becomes, and add the rules it needs."""
        further = None
        for _ in range(1 if most is None else most - least):
            rule = self.add(name)
            then = (rule,) if most is None else () if further is None else (further,)
            self.alternatives[rule] = [what + then, ()]
            further = rule
        if further is not None:
            self.starts.append(further)
        return what * least + (() if further is None else (further,))
