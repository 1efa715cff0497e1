# SPDX-License-Identifier: GPL-3.0-only
"""Pure: reads a GBNF grammar and says what is wrong with it, before llama.cpp sees it.

llama.cpp's own parser tells its reasons to stderr only, recurses once a parenthesis, and never
returns from `"a"{3,2}`. This one follows the same syntax (grammars/README.md of llama.cpp), gives
line and column, and bounds what a grammar may cost.
"""

from __future__ import annotations

import re

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


def check_gbnf(text: str) -> bool:
    """Return whether the grammar names single tokens (`<think>`, `<[7]>`).

    Raises: InvalidGrammar with place and reason: bad syntax, a rule that is missing or defined in
      terms of itself, or more than the bounds of this module.
    """
    return _Reader(text).read()


class _Reader:
    """A recursive descent over one grammar. `_starts` maps a rule to the rules it may begin with."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._elements = 0
        self._nesting = 0
        self._names_tokens = False
        self._rule = ""
        self._defined: set[str] = set()
        self._used: dict[str, int] = {}

    def read(self) -> bool:
        size = len(self._text.encode("utf-8", errors="replace"))
        if size > MAX_BYTES:
            raise InvalidGrammar(f"the grammar has {size} bytes; the most is {MAX_BYTES}")
        if "\0" in self._text:
            self._at = self._text.index("\0")
            raise self._wrong("a NUL character cannot be part of a grammar")
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._text):
            self._read_rule()
        if "root" not in self._defined:
            raise InvalidGrammar("the grammar has no rule named root, where it would begin")
        for name, place in self._used.items():
            if name not in self._defined:
                self._at = place
                raise self._wrong(f"no rule is named {name}")
        return self._names_tokens

    def _read_rule(self) -> None:
        self._rule = self._name("the name of a rule")
        self._skip(_SPACE)
        if not self._text.startswith("::=", self._at):
            raise self._wrong("expected ::=")
        self._at += 3
        self._defined.add(self._rule)
        self._skip(_SPACE_AND_LINES)
        self._elements += self._alternatives()
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            raise self._wrong("expected the end of the rule, or more of it")
        self._skip(_SPACE_AND_LINES)

    def _alternatives(self) -> int:
        """Read `a | b | ...`; return the number of elements, repetitions written out."""
        count = self._sequence()
        while self._peek() == "|":
            self._at += 1
            self._skip(_SPACE_AND_LINES)
            count += self._sequence() + 1
        return count

    def _sequence(self) -> int:
        total, last = 0, None
        while True:
            begin = self._peek()
            if begin in {"*", "+", "?", "{"}:
                if last is None:
                    raise self._wrong(f"nothing stands before {begin} that could be repeated")
                times = self._repetition()
                total += last * (times - 1)
            else:
                last = self._element(begin)
                if last is None:
                    return total
                total += last
            if self._elements + total > MAX_ELEMENTS:
                raise self._wrong(f"with its repetitions the grammar has more than {MAX_ELEMENTS} elements")
            self._skip(_SPACE_AND_LINES if self._nesting else _SPACE)

    def _element(self, begin: str) -> int | None:
        """Read one element; None if none begins here."""
        if begin == '"':
            return self._characters('"')
        if begin == "[":
            return self._characters("]")
        if begin == "(":
            return self._group()
        if begin == ".":
            self._at += 1
            return 1
        if begin and begin in "<!":
            token = _TOKEN.match(self._text, self._at)
            if token is None:
                raise self._wrong("expected a token, as <think> or <[7]>")
            self._at = token.end()
            self._names_tokens = True
            return 1
        if begin and _NAME.match(begin):
            place = self._at
            self._used.setdefault(self._name("a rule"), place)
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
        return count + 1

    def _characters(self, end: str) -> int:
        """Read a literal or a character class."""
        opened = self._at
        self._at += 1
        if end == "]" and self._peek() == "^":
            self._at += 1
        count = 0
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
            else:
                self._at += 1
            count += 1
        if end == "]" and not count:
            self._at = opened
            raise self._wrong("a character class cannot be empty")
        self._at += 1
        return count

    def _repetition(self) -> int:
        """Read `*`, `+`, `?` or `{m,n}`; return how often llama.cpp writes the element out."""
        if self._peek() != "{":
            self._at += 1
            return 2
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
        return max(2, 2 * most)

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
