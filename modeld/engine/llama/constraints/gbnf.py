# SPDX-License-Identifier: GPL-3.0-only
"""Parse a GBNF grammar and report its errors with line and column. Pure.

llama.cpp's own parser tells its reasons to stderr only, recurses once a parenthesis, and never
returns from `"a"{3,2}`. This one follows the same syntax (grammars/README.md of llama.cpp), gives
line and column, and bounds what a grammar may cost.
"""

from __future__ import annotations

import re
from collections.abc import Generator

from modeld.engine.llama.constraints.gbnf_rules import Rules, Terminal
from modeld.engine.llama.constraints.stacks import check_stacks
from modeld.errors import InvalidGrammar

MAX_BYTES = 256 * 1024
MAX_NESTING = 64
MAX_REPETITIONS = 1000
MAX_ELEMENTS = 100_000
"""Elements after repetitions were written out, as llama.cpp does."""

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_REPEAT = re.compile(r"\{[ \t]*([0-9]+)[ \t]*(?:(,)[ \t]*([0-9]*)[ \t]*)?\}")
_ESCAPE = re.compile(r'\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[trn\\"\[\]-])')
_TOKEN = re.compile(r"!?<(?:\[[0-9]{1,9}\]|[^>\0]+)>")


def check_gbnf(text: str) -> Generator[None, None, tuple[str, ...]]:
    """Return the single tokens that the grammar names (`<think>`, `<[7]>`), each once; in parts (`slices`).

    Raises: InvalidGrammar with place and reason: bad syntax, a rule that is missing or defined in
      terms of itself, or more than the bounds of this module and of `stacks`.
    """
    reader = _Reader(text)
    tokens = yield from reader.read()
    yield from check_stacks(reader.rules, reader.numbers["root"])
    return tokens


class _Reader:
    """A recursive descent over one grammar, which leaves its `rules`, and their `numbers` by name."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._elements = 0
        self._nesting = 0
        self._tokens: dict[str, None] = {}
        self._rule = ""
        self._defined: set[str] = set()
        self._used: dict[str, int] = {}
        self.rules = Rules()
        self.numbers: dict[str, int] = {}
        self._symbols: tuple[int, ...] = ()
        self._choice: list[tuple[int, ...]] = []

    def read(self) -> Generator[None, None, tuple[str, ...]]:
        size = len(self._text.encode("utf-8", errors="replace"))
        if size > MAX_BYTES:
            raise InvalidGrammar(f"the grammar has {size} bytes; the most is {MAX_BYTES}")
        if "\0" in self._text:
            self._at = self._text.index("\0")
            raise self._wrong("a NUL character cannot be part of a grammar")
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._text):
            self._read_rule()
            yield
        if "root" not in self._defined:
            raise InvalidGrammar("the grammar has no rule named root, where it would begin")
        for name, place in self._used.items():
            if name not in self._defined:
                self._at = place
                raise self._wrong(f"no rule is named {name}")
        return tuple(self._tokens)

    def _read_rule(self) -> None:
        self._rule = self._name("the name of a rule")
        self._skip(_SPACE)
        if not self._text.startswith("::=", self._at):
            raise self._wrong("expected ::=")
        self._at += 3
        self._defined.add(self._rule)
        self._skip(_SPACE_AND_LINES)
        self._elements += self._alternatives()
        number = self._number(self._rule)
        self.rules.alternatives[number] = self._choice
        self.rules.starts.append(number)
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            raise self._wrong("expected the end of the rule, or more of it")
        self._skip(_SPACE_AND_LINES)

    def _alternatives(self) -> int:
        """Read `a | b | ...` into `_choice`; return the number of elements, repetitions written out."""
        count = self._sequence()
        choice = [self._symbols]
        while self._peek() == "|":
            self._at += 1
            self._skip(_SPACE_AND_LINES)
            count += self._sequence() + 1
            choice.append(self._symbols)
        self._choice = choice
        return count

    def _sequence(self) -> int:
        """Read elements into `_symbols`; return their number."""
        total, last = 0, None
        symbols: list[int] = []
        begun = 0
        while True:
            begin = self._peek()
            if begin in {"*", "+", "?", "{"}:
                if last is None:
                    raise self._wrong(f"nothing stands before {begin} that could be repeated")
                least, most = self._repetition()
                total += last * (_written_out(least, most) - 1)
                self._check_elements(total)
                symbols[begun:] = self.rules.repeated(self._rule, tuple(symbols[begun:]), least, most)
            else:
                last = self._element(begin)
                if last is None:
                    self._symbols = tuple(symbols)
                    return total
                total += last
                self._check_elements(total)
                begun = len(symbols)
                symbols += self._symbols
            self._skip(_SPACE_AND_LINES if self._nesting else _SPACE)

    def _check_elements(self, further: int) -> None:
        if self._elements + further > MAX_ELEMENTS:
            raise self._wrong(f"with its repetitions the grammar has more than {MAX_ELEMENTS} elements")

    def _number(self, name: str) -> int:
        """Return the number of the rule of this name."""
        number = self.numbers.get(name)
        if number is None:
            number = self.numbers[name] = self.rules.add(name)
        return number

    def _element(self, begin: str) -> int | None:
        """Read one element into `_symbols`; None if none begins here."""
        if begin == '"':
            return self._characters('"')
        if begin == "[":
            return self._characters("]")
        if begin == "(":
            return self._group()
        if begin == ".":
            self._at += 1
            self._symbols = (self.rules.terminal(Terminal((), negated=True)),)
            return 1
        if begin and begin in "<!":
            token = _TOKEN.match(self._text, self._at)
            if token is None:
                raise self._wrong("expected a token, as <think> or <[7]>")
            self._at = token.end()
            self._tokens[token[0].removeprefix("!")] = None
            self._symbols = (self.rules.terminal(Terminal(())),)
            return 1
        if begin and _NAME.match(begin):
            place = self._at
            name = self._name("a rule")
            self._used.setdefault(name, place)
            self._symbols = (self._number(name),)
            return 1
        return None

    def _group(self) -> int:
        opened = self._at
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise self._wrong(f"parentheses are nested deeper than {MAX_NESTING}")
        self._at += 1
        self._skip(_SPACE_AND_LINES)
        count = self._alternatives()
        if self._peek() != ")":
            if not self._peek():
                self._at = opened
            raise self._wrong("this parenthesis is never closed" if self._at == opened else "expected )")
        self._at += 1
        self._nesting -= 1
        number = self.rules.add(self._rule)
        self.rules.alternatives[number] = self._choice
        self.rules.starts.append(number)
        self._symbols = (number,)
        return count + 1

    def _characters(self, end: str) -> int:
        """Read a literal or a character class into `_symbols`."""
        opened = self._at
        self._at += 1
        negated = end == "]" and self._peek() == "^"
        if negated:
            self._at += 1
        count = 0
        codes: list[int] = []
        dashes: list[int] = []  # places in `codes` of a dash that may stand for a range
        while self._peek() != end:
            character = self._peek()
            if not character:
                self._at = opened
                raise self._wrong("this is never closed")
            if character == "\\":
                escape = _ESCAPE.match(self._text, self._at)
                if escape is None:
                    raise self._wrong(
                        'unknown escape; there are \\n \\r \\t \\\\ \\" \\[ \\] \\- \\xHH \\uHHHH'
                    )
                self._at = escape.end()
                codes.append(_unescaped(escape[0]))
            else:
                self._at += 1
                if character == "-":
                    dashes.append(len(codes))
                codes.append(ord(character))
            count += 1
        if end == "]" and not count:
            self._at = opened
            raise self._wrong("a character class cannot be empty")
        self._at += 1
        if end == "]":
            self._symbols = (self.rules.terminal(Terminal(_ranges(codes, dashes), negated=negated)),)
        else:
            self._symbols = tuple(self.rules.terminal(Terminal(((code, code),))) for code in codes)
        return count

    def _repetition(self) -> tuple[int, int | None]:
        """Read `*`, `+`, `?` or `{m,n}`; return the least and the most (None is any number)."""
        sign = self._peek()
        if sign != "{":
            self._at += 1
            return (1 if sign == "+" else 0), (1 if sign == "?" else None)
        repeat = _REPEAT.match(self._text, self._at)
        if repeat is None:
            raise self._wrong("expected {m}, {m,} or {m,n}")
        least = int(repeat[1][:9])
        most = int(repeat[3][:9]) if repeat[3] else least
        if repeat[3] and most < least:
            raise self._wrong(f"at most {most} is less than at least {least}")
        if most > MAX_REPETITIONS:
            raise self._wrong(f"more than {MAX_REPETITIONS} repetitions")
        self._at = repeat.end()
        return least, (None if repeat[2] and not repeat[3] else most)

    def _name(self, what: str) -> str:
        name = _NAME.match(self._text, self._at)
        if name is None:
            raise self._wrong(f"expected {what}")
        self._at = name.end()
        return name[0]

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, space: re.Pattern[str]) -> None:
        match = space.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _wrong(self, reason: str) -> InvalidGrammar:
        before = self._text[: self._at]
        line = before.count("\n") + 1
        column = self._at - (before.rfind("\n") + 1) + 1
        return InvalidGrammar(
            f"the grammar cannot be compiled: line {line}, column {column}: {reason}",
            details={"line": line, "column": column},
        )


def _written_out(least: int, most: int | None) -> int:
    """How often llama.cpp writes the element out, with what it adds for each."""
    if most is None:
        return least + 1
    return 1 if most == 1 else max(2, 2 * most)


def _unescaped(escape: str) -> int:
    """The character of an escape, as a number."""
    if escape[1] in "xuU":
        return int.from_bytes(bytes.fromhex(escape[2:]), "big")
    return ord({"n": "\n", "r": "\r", "t": "\t"}.get(escape[1], escape[1]))


def _ranges(codes: list[int], dashes: list[int]) -> tuple[tuple[int, int], ...]:
    """The ranges of a character class; a dash at its begin or end is one of its characters."""
    may_join = set(dashes)
    ranges: list[tuple[int, int]] = []
    at = 0
    while at < len(codes):
        if at + 2 < len(codes) and at + 1 in may_join:
            ranges.append((codes[at], codes[at + 2]))
            at += 3
        else:
            ranges.append((codes[at], codes[at]))
            at += 1
    return tuple(ranges)
