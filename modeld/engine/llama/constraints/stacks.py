# SPDX-License-Identifier: GPL-3.0-only
"""Refuse grammars so ambiguous that llama.cpp would not finish. Pure.

llama.cpp keeps every way to read the text so far as a stack of its own, and to judge a token it
follows each way through each of its characters, without joining ways that meet (`advance_stack`
and `reject_candidates` of src/llama-grammar.cpp). A grammar of 75 bytes can so keep it busy for
ever, inside one call that nothing can interrupt. Here the ways are counted before: from every rule
that has a choice, over as many characters as tokens have, along the characters that fit most ways.
It is a search with a bounded amount of work, not a proof; `matcher` bounds the time of a draw.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from modeld.engine.llama.constraints.gbnf_rules import Rules, Terminal
from modeld.errors import InvalidGrammar

MAX_STACKS = 2000
"""Ways to go on at one point. llama.cpp tries the whole vocabulary with each: 2,000 take about a second."""
MAX_WAYS = 250_000
"""Ways to read one token; llama.cpp follows about a million in a second."""
MAX_CHAIN = 5000
"""Rules each of which begins with the next; llama.cpp recurses."""
MAX_VISITS = 20_000_000
"""Visits of llama.cpp's search for left recursion, which does not remember where it was."""
WORK = 300_000
"""Stacks looked at in all, which takes half a second."""
_TOKEN = 16
"""Characters of a long token of letters."""
_DIGITS = 8
_RUN = 32
_RUNS = " -=*#_./\n\t"
"""Characters that vocabularies repeat in one token."""
_BEAM = 6
_TRIED = 8
_END = -(2**31)


def check_stacks(rules: Rules, root: int) -> Iterator[None]:
    """Look for rules that begin with themselves, and for ways that multiply; in parts of a few ms.

    Raises: InvalidGrammar.
    """
    yield from _check_beginnings(rules)
    search = _Search(rules)
    yield from search.look_from(root, WORK // 4)
    starts = [rule for rule in rules.starts if len(rules.alternatives[rule]) > 1]
    for done, rule in enumerate(starts):
        left = WORK - search.work
        if left <= 0:
            return
        yield from search.look_from(rule, max(1, left // (len(starts) - done)))


def _check_beginnings(rules: Rules) -> Iterator[None]:
    """Refuse left recursion, and chains that llama.cpp's own search for it would not end."""
    empty = _may_be_empty(rules)
    visits = [0] * len(rules.names)  # 0 is not seen, -1 under way
    depth = [0] * len(rules.names)
    for start in range(len(rules.names)):
        path = [(start, iter(_beginnings(rules, start, empty)))] if not visits[start] else []
        if path:
            visits[start] = -1
        while path:
            rule, beginnings = path[-1]
            child = next(beginnings, None)
            if child is None:
                path.pop()
                children = list(_beginnings(rules, rule, empty))
                visits[rule] = min(MAX_VISITS + 1, 1 + sum(visits[one] for one in children))
                depth[rule] = 1 + max((depth[one] for one in children), default=0)
            elif visits[child] < 0:
                raise InvalidGrammar(
                    f"the rule {rules.names[child]} of the grammar begins with itself (left recursion): "
                    f"put something that takes a character before it"
                )
            elif not visits[child]:
                visits[child] = -1
                path.append((child, iter(_beginnings(rules, child, empty))))
        yield
    if max(depth, default=0) > MAX_CHAIN:
        raise InvalidGrammar(
            f"a rule of the grammar begins with another, this with another, and so on through {max(depth)} "
            f"rules; llama.cpp can bear {MAX_CHAIN}"
        )
    if sum(visits) > MAX_VISITS:
        raise InvalidGrammar(
            f"rules of the grammar begin with others in more than {MAX_VISITS} ways, and llama.cpp would "
            f"look at each; let alternatives that begin with the same rule share it"
        )


def _may_be_empty(rules: Rules) -> list[bool]:
    """For each rule, whether it can match nothing."""
    users: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    empty = [False] * len(rules.names)
    todo: list[int] = []
    for rule, alternatives in enumerate(rules.alternatives):
        for symbols in alternatives:
            if not symbols and not empty[rule]:
                empty[rule] = True
                todo.append(rule)
            if symbols and min(symbols) >= 0:
                for symbol in set(symbols):
                    users.setdefault(symbol, []).append((rule, symbols))
    while todo:
        for rule, symbols in users.get(todo.pop(), ()):
            if not empty[rule] and all(empty[symbol] for symbol in symbols):
                empty[rule] = True
                todo.append(rule)
    return empty


def _beginnings(rules: Rules, rule: int, empty: Sequence[bool]) -> Iterator[int]:
    """The rules that an alternative may begin with."""
    for symbols in rules.alternatives[rule]:
        for symbol in symbols:
            if symbol < 0:
                break
            yield symbol
            if not empty[symbol]:
                break


Ways = dict[int, int]
"""How often each stack is reached."""


class _Search:
    """Stacks as llama.cpp expands them, each known by a number; 0 is the empty one."""

    def __init__(self, rules: Rules) -> None:
        self.work = 0
        self._rules = rules
        self._flat: list[int] = []
        self._begins: list[list[int]] = []
        for alternatives in rules.alternatives:
            begins: list[int] = []
            for symbols in alternatives:
                begins.append(len(self._flat))
                self._flat += (*symbols, _END)
            self._begins.append(begins)
        self._cells: list[tuple[int, int]] = [(-1, 0)]
        self._numbers: dict[tuple[int, int], int] = {}
        self._expanded: dict[int, tuple[int, ...]] = {}

    def look_from(self, rule: int, work: int) -> Iterator[None]:
        """Follow the worst characters from the beginning of a rule, with so much work at most."""
        until = self.work + work
        ways: Ways = {}
        for begin in self._begins[rule]:
            for stack in self._expand(self._pushed(begin, 0), rule):
                ways[stack] = ways.get(stack, 0) + 1
        self._bound(ways, rule, 0)
        for character in _RUNS:
            yield from self._run(ways, ord(character), rule, until)
        beam: list[tuple[int, Ways]] = [(0, ways)]
        for step in range(1, _TOKEN + 1):
            found: dict[tuple[int, ...], tuple[int, Ways]] = {}
            for digits, before in beam:
                for code in self._worst(before):
                    is_digit = chr(code).isdigit()
                    if self.work > until or (is_digit and digits >= _DIGITS):
                        continue
                    after = self._step(before, code, rule)
                    self._bound(after, rule, step)
                    if after:
                        found.setdefault(tuple(after), (digits + 1 if is_digit else 0, after))
                    yield
            beam = sorted(found.values(), key=lambda one: -sum(one[1].values()))[:_BEAM]
            if not beam:
                return

    def _run(self, ways: Ways, code: int, rule: int, until: int) -> Iterator[None]:
        for step in range(1, _RUN + 1):
            if not ways or self.work > until:
                return
            ways = self._step(ways, code, rule)
            self._bound(ways, rule, step)
            yield

    def _bound(self, ways: Ways, rule: int, step: int) -> None:
        name = self._rules.names[rule]
        if len(ways) > MAX_STACKS:
            raise self._too_many_stacks(rule)
        if sum(ways.values()) > MAX_WAYS:
            raise InvalidGrammar(
                f"the grammar is too ambiguous: in the rule {name}, {step} characters can be read in more "
                f"than {MAX_WAYS} ways, and llama.cpp would follow each; let alternatives that begin alike "
                f"share their beginning, and put no repetition directly inside another"
            )

    def _too_many_stacks(self, rule: int) -> InvalidGrammar:
        return InvalidGrammar(
            f"the grammar has more than {MAX_STACKS} ways to go on at one point of the rule "
            f"{self._rules.names[rule]}; let alternatives that begin alike share their beginning"
        )

    def _terminal(self, stack: int) -> Terminal:
        return self._rules.terminals[-1 - self._flat[self._cells[stack][0]]]

    def _worst(self, ways: Ways) -> list[int]:
        """Characters that the most ways take, the worst first."""
        classes: dict[Terminal, int] = {}
        for stack, count in ways.items():
            if stack:
                terminal = self._terminal(stack)
                classes[terminal] = classes.get(terminal, 0) + count
        codes = dict.fromkeys(ord(letter) for letter in 'a 0"') if classes else {}
        for terminal in list(classes)[: 4 * _TRIED]:
            for low, high in terminal.ranges[:_TRIED]:
                if terminal.negated:
                    codes.update({max(0, low - 1): None, high + 1: None})
                else:
                    codes.update({low: None, high: None})
        self.work += len(codes) * len(classes) // 4
        scores = {
            code: sum(count for terminal, count in classes.items() if terminal.matches(code))
            for code in codes
            if code <= sys.maxunicode
        }
        best = sorted((code for code in scores if scores[code]), key=lambda code: -scores[code])
        return best[:_TRIED]

    def _step(self, ways: Ways, code: int, rule: int) -> Ways:
        """The ways after one more character."""
        after: Ways = {}
        for stack, count in ways.items():
            self.work += 1
            if stack and self._terminal(stack).matches(code):
                place, below = self._cells[stack]
                for following in self._expand(self._pushed(place + 1, below), rule):
                    after[following] = after.get(following, 0) + count
        return after

    def _pushed(self, place: int, below: int) -> int:
        """The stack with this place on top, unless the place is an end."""
        if self._flat[place] == _END:
            return below
        cell = (place, below)
        number = self._numbers.get(cell)
        if number is None:
            number = self._numbers[cell] = len(self._cells)
            self._cells.append(cell)
        return number

    def _expand(self, stack: int, rule: int) -> tuple[int, ...]:
        """The stacks with a terminal on top (or nothing at all) that this one stands for."""
        known = self._expanded.get(stack)
        if known is not None:
            self.work += len(known)
            return known
        todo, seen, found = [stack], {stack}, list[int]()
        while todo:
            one = todo.pop()
            self.work += 1
            place, below = self._cells[one]
            if not one or self._flat[place] < 0:
                found.append(one)
                if len(found) > MAX_STACKS:
                    raise self._too_many_stacks(rule)
                continue
            rest = self._pushed(place + 1, below)
            for begin in self._begins[self._flat[place]]:
                further = self._pushed(begin, rest)
                if further not in seen:
                    seen.add(further)
                    todo.append(further)
        result = self._expanded[stack] = tuple(found)
        return result
