# SPDX-License-Identifier: GPL-3.0-only
"""Find calls of functions in the text of an answer, as it comes. Pure.

Models write a call as their chat template taught them (`domain/tool_calls.py`). All of these forms are known
at
once, since none of them looks like another:

    <tool_call>{"name": "f", "arguments": {...}}</tool_call>     Hermes, Qwen, and what we teach others
    [TOOL_CALLS][{"name": "f", "arguments": {...}}]              Mistral until version 7
    [TOOL_CALLS]f[CALL_ID]x[ARGS]{...}                           Mistral from version 11
    <|python_tag|>{"name": "f", "parameters": {...}}             Llama 3
    {"name": "f", "parameters": {...}}                           Llama 3 without its tag, and forced calls

The last one has no marker, so it may as well be data: it is a call only if the whole answer is nothing else
(or a list of such objects, or several with `;` between them) and its arguments fit the function's schema.
Nothing within thoughts is a call.

A call is held back until it is complete, and told at once. What turns out to be none is text, as the model
wrote it, and so is a call that was cut off. Thus an answer has one reading, in whatever parts it comes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto
from itertools import groupby

import msgspec

from modeld.dialects.common.argument_check import ArgumentCheck
from modeld.dialects.common.tool_calls import (
    NO_CALL,
    ParsedCall,
    ValueEnd,
    arguments_of,
    bare_calls,
    begins_call,
    marked_call,
)
from modeld.domain.request import Tool
from modeld.domain.tool_calls import HERMES_BEGIN, HERMES_END, LLAMA_TAG, MISTRAL_CALLS, THOUGHTS

_CALL_MARKERS = (HERMES_BEGIN, MISTRAL_CALLS, LLAMA_TAG)
_AMONG_CALLS = (*_CALL_MARKERS, HERMES_END)
_MARKERS = (*_CALL_MARKERS, *THOUGHTS)
_MARKER = re.compile("|".join(map(re.escape, _MARKERS)))
_BEHIND_MARKER, _BEHIND_CALL = "[{", ",;]{"
_THEN = {"[": "{", ",": "{", ";": "{", "]": ""}
"""What may follow these among calls, if not a marker."""
_FIRST = frozenset(marker[0] for marker in _MARKERS)
_MISTRAL_HEAD = re.compile(r"([\w.:-]+)\s*(?:\[CALL_ID\]\s*[\w-]+\s*)?(?:\[ARGS\]\s*)?\{")
_BEFORE_BRACE = re.compile(r"[\w.:-]+\s*(?:\[[^{]*)?")
_LONGEST_HEAD = 256
_PART = 4096
"""Characters that are read at once: what is left of a text is copied with each step in it."""


class TextPiece(msgspec.Struct, frozen=True):
    """Text for the reader."""

    text: str


class CallPiece(msgspec.Struct, frozen=True):
    """A whole call; `number` counts from 0, and the arguments are the JSON of an object."""

    number: int
    id: str
    name: str
    arguments: str


Piece = TextPiece | CallPiece


class _In(Enum):
    """Where the reader is."""

    START = auto()
    """Nothing was said but thoughts: what begins like JSON may be a call without a marker."""
    TEXT = auto()
    THOUGHT = auto()
    CALLS = auto()
    """Behind a marker or a call."""
    VALUE = auto()


class ToolReader:
    """Reads one answer.

    Args:
      tools: the functions that were offered.
      new_id: gives the id of a call by its number.
      forced: the text is bound to be a call. The grammar knows less of a schema than the check does,
        which would make text of a call that the model had to write.
      one_call: only the first call counts; others are left out.

    Attributes:
      calls: how many there are.
    """

    def __init__(
        self,
        tools: Iterable[Tool],
        new_id: Callable[[int], str],
        *,
        forced: bool = False,
        one_call: bool = False,
    ) -> None:
        self.calls = 0
        self._one_call = one_call
        self._tools = {tool.name: tool for tool in tools}
        self._new_id = new_id
        self._check = None if forced else ArgumentCheck()
        self._at = _In.START
        self._text = ""
        """What was not read yet: it may become part of a marker."""
        self._held: list[str] = []
        """What was read and not told: it is said if it does not become a call."""
        self._marker = ""
        """That of the calls we are among; empty without one."""
        self._next = ""
        """Characters of which one may come next among calls, if it is not a marker."""
        self._value = ValueEnd()
        self._value_at = 0
        """Where among the parts that are held the value begins."""
        self._name = ""
        """The function whose arguments the value is; empty if it is a call."""
        self._bare: list[ParsedCall] = []
        """Calls without a marker: they count if nothing else follows."""
        self._thought = ""
        self._behind_thought = _In.START
        self._trims = False
        """Whether blanks are left out: they follow a call."""
        self._pieces: list[Piece] = []

    def begin_in(self, thought: str) -> None:
        """Say that the answer begins in a thought, whose marker the prompt ended with; empty: in none."""
        if thought:
            self._at, self._thought = _In.THOUGHT, thought

    def feed(self, text: str) -> list[Piece]:
        """Take more text; return what is known now, in order."""
        if self._at is _In.TEXT and not self._text and not self._trims and _FIRST.isdisjoint(text):
            return [TextPiece(text)] if text else []  # nearly all text goes this way
        if (
            self._at is _In.THOUGHT
            and not self._text
            and not self._trims
            and THOUGHTS[self._thought][0] not in text
        ):
            return [TextPiece(text)] if text else []  # and most of what a model thinks, this way
        for begin in range(0, len(text), _PART):
            self._text += text[begin : begin + _PART]
            while self._text and self._advance():
                pass
        return self._taken()

    def end(self) -> list[Piece]:
        """Say that nothing follows; return the rest."""
        if self._at is _In.CALLS and self._next != "{":
            self._tell(self._bare)
        self._hold(len(self._text))
        self._let_go()
        return self._taken()

    def _advance(self) -> bool:
        """Go one step on in the text; False when more of it is needed."""
        match self._at:
            case _In.START:
                return self._in_start()
            case _In.TEXT:
                return self._in_text()
            case _In.THOUGHT:
                return self._in_thought()
            case _In.CALLS:
                return self._among_calls()
            case _In.VALUE:
                return self._in_value()

    def _in_start(self) -> bool:
        if not self._hold_blanks() or _may_become(self._text, _MARKERS):
            return False
        found = _MARKER.match(self._text)
        if found is not None and found[0] in THOUGHTS:
            self._let_go()
            self._think(found[0])
            return True
        if found is None and self._text[0] in "{[":
            return self._begin_call()
        self._leave()
        return True

    def _in_text(self) -> bool:
        """Say text up to the next marker."""
        found = _MARKER.search(self._text)
        if found is None:
            self._say_but(_overlap(self._text, _MARKERS))
            return False
        self._say_but(len(self._text) - found.start())
        if found[0] in THOUGHTS:
            self._think(found[0])
        else:
            self._begin_calls(found[0])
        return True

    def _in_thought(self) -> bool:
        end = THOUGHTS[self._thought]
        found = self._text.find(end)
        if found < 0:
            self._say_but(_overlap(self._text, (end,)))
            return False
        self._say_but(len(self._text) - found - len(end))
        self._at = self._behind_thought
        return True

    def _among_calls(self) -> bool:
        """Find the next call, or the end of all of them."""
        markers = _AMONG_CALLS if self._marker else ()
        if not self._hold_blanks() or _may_become(self._text, markers):
            return False
        marker = next(filter(self._text.startswith, markers), "")
        if marker == HERMES_END:
            self._hold(len(marker))
        elif marker:
            self._begin_calls(marker)
            return True
        elif self._text[0] in self._next:
            if self._text[0] == "{":
                return self._begin_call()
            self._next = _THEN[self._text[0]]
            self._hold(1)
            return True
        elif self._marker == MISTRAL_CALLS and self._next == _BEHIND_MARKER:
            head = self._text[:_LONGEST_HEAD]
            if found := _MISTRAL_HEAD.match(head):
                self._hold(found.end() - 1)
                self._begin_value(found[1])
                return True
            if len(head) < _LONGEST_HEAD and _BEFORE_BRACE.fullmatch(head):
                return False
        self._leave()
        return True

    def _in_value(self) -> bool:
        self._hold(self._value.feed(self._text))
        if not self._value.found and not self._value.failed:
            return False
        value = "".join(self._held[self._value_at :])
        calls = self._calls_in(value) if self._value.found else []
        if not calls:
            self._leave()
        elif self._marker:
            self._tell(calls)
            self._at, self._next = _In.CALLS, _BEHIND_CALL
        else:
            self._bare += calls
            self._at, self._next = _In.CALLS, ";" if value[0] == "{" else ""
        return True

    def _calls_in(self, value: str) -> list[ParsedCall]:
        """Return what a complete value calls; nothing, if part of it is no call.

        Also behind a marker a function that was not offered is not called: no client could run it, and a text
        that explains the marker shows it with a function that it made up. No grammar lets a model get there.
        """
        try:
            if self._name:
                calls = [ParsedCall(self._name, arguments_of(value))]
            else:
                calls = marked_call(value) if self._marker else bare_calls(value)
        except NO_CALL:
            return []
        check = None if self._marker else self._check
        for call in calls:
            tool = self._tools.get(call.name)
            if tool is None or (check is not None and not check.fits(tool, call.arguments)):
                return []
        return calls

    def _think(self, marker: str) -> None:
        self._say_but(len(self._text) - len(marker))
        self._at, self._thought = _In.THOUGHT, marker

    def _begin_calls(self, marker: str) -> None:
        self._let_go()
        self._hold(len(marker))
        self._at, self._marker, self._next = _In.CALLS, marker, _BEHIND_MARKER

    def _begin_call(self) -> bool:
        """Begin with a value if it may be a call; return False when more text is needed to know that."""
        begins = begins_call(self._text)
        if begins is None:
            return False
        if begins:
            self._begin_value()
        else:
            self._leave()
        return True

    def _begin_value(self, name: str = "") -> None:
        self._at, self._value = _In.VALUE, ValueEnd()
        self._value_at, self._name = len(self._held), name

    def _leave(self) -> None:
        """Go back to text."""
        self._bare.clear()
        self._let_go()
        self._at = self._behind_thought = _In.TEXT

    def _let_go(self) -> None:
        """Say what was held, unless it only ends a call."""
        held = "".join(self._held)
        self._held.clear()
        rest = held.replace("]", "").strip()
        closes = self._marker == HERMES_BEGIN and rest.startswith("</") and HERMES_END.startswith(rest)
        if not (self._trims and (not rest or closes)):
            self._say(held)

    def _hold_blanks(self) -> bool:
        """Hold the blanks that come next; return whether there is more."""
        self._hold(len(self._text) - len(self._text.lstrip()))
        return bool(self._text)

    def _hold(self, count: int) -> None:
        self._held.append(self._text[:count])
        self._text = self._text[count:]

    def _tell(self, calls: Sequence[ParsedCall]) -> None:
        if not calls:
            return
        for call in calls:
            if not (self._one_call and self.calls):
                self._pieces.append(
                    CallPiece(self.calls, self._new_id(self.calls), call.name, call.arguments)
                )
                self.calls += 1
        self._held.clear()
        self._trims = True

    def _say_but(self, rest: int) -> None:
        """Say all of the text but its end, of that length."""
        cut = len(self._text) - rest
        self._say(self._text[:cut])
        self._text = self._text[cut:]

    def _say(self, text: str) -> None:
        if self._trims:
            text = text.lstrip()
        if text:
            self._trims = False
            self._pieces.append(TextPiece(text))

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return joined(pieces)


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Return pieces with texts that follow each other as one."""
    found: list[Piece] = []
    for _, group in groupby(pieces, type):
        some = list(group)
        texts = [piece.text for piece in some if isinstance(piece, TextPiece)]
        found += [TextPiece("".join(texts))] if texts else some
    return found


def _may_become(text: str, markers: Iterable[str]) -> bool:
    """Whether a text is the beginning of a marker."""
    return any(marker != text and marker.startswith(text) for marker in markers)


def _overlap(text: str, markers: Iterable[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a marker."""
    longest = max(map(len, markers)) - 1
    ends = (text[at:] for at in range(max(0, len(text) - longest), len(text)))
    return next((len(end) for end in ends if _may_become(end, markers)), 0)
