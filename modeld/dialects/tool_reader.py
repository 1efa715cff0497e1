# SPDX-License-Identifier: GPL-3.0-only
"""Finds calls of functions in the text of an answer, as it comes. Pure.

Models write a call as their chat template taught them (`core/tools.py`). All of these forms are known at
once, since none of them looks like another:

    <tool_call>{"name": "f", "arguments": {...}}</tool_call>     Hermes, Qwen, and what we teach others
    [TOOL_CALLS][{"name": "f", "arguments": {...}}]              Mistral until version 7
    [TOOL_CALLS]f[CALL_ID]x[ARGS]{...}                           Mistral from version 11
    <|python_tag|>{"name": "f", "parameters": {...}}             Llama 3
    {"name": "f", "parameters": {...}}                           Llama 3 without its tag, and forced calls

The last one counts only at the beginning of the text, and for functions that were offered. Whatever
turns out to be no call is text. Arguments are passed on as they come, before they are complete.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum, auto

import msgspec

from modeld.core.tools import (
    HERMES_BEGIN,
    HERMES_END,
    LLAMA_TAG,
    MISTRAL_ARGUMENTS,
    MISTRAL_CALLS,
    MISTRAL_ID,
)
from modeld.dialects.call_scanner import CallScanner

_BEGINNINGS = (HERMES_BEGIN, MISTRAL_CALLS, LLAMA_TAG)
_FIRST = frozenset(marker[0] for marker in _BEGINNINGS)
_BETWEEN = " \t\r\n,;[]"
"""What may stand between calls."""
_MARKS = (HERMES_END, HERMES_BEGIN, MISTRAL_CALLS.lstrip(_BETWEEN), LLAMA_TAG)
"""Markers that may stand between calls, without what is skipped there."""
_MOST_NAME = 256


class Said(msgspec.Struct, frozen=True):
    """Text for the reader."""

    text: str


class Called(msgspec.Struct, frozen=True):
    """A call begins; `number` counts from 0."""

    number: int
    id: str
    name: str


class Arguments(msgspec.Struct, frozen=True):
    """More of a call's arguments: JSON text."""

    number: int
    text: str


Piece = Said | Called | Arguments


class _In(Enum):
    """Where the reader is."""

    START = auto()
    """Nothing was said: what begins like JSON may be a call without a marker."""
    TEXT = auto()
    CALLS = auto()
    """Behind a marker or a call: before the next call, or the end of all of them."""
    CALL = auto()


class ToolReader:
    """Reads one answer.

    Args:
      names: the functions that were offered.
      new_id: gives the id of a call by its number.

    Attributes:
      calls: how many have begun.
    """

    def __init__(self, names: Collection[str], new_id: Callable[[int], str]) -> None:
        self.calls = 0
        self._names = names
        self._new_id = new_id
        self._at = _In.START
        self._held = ""
        """Text that was not read yet: it may become part of a marker."""
        self._raw = ""
        """Text that was read as part of a call of which nothing was told: it is said if it is none."""
        self._marker = ""
        """That of the calls we are among; empty for calls without one."""
        self._scanner = CallScanner(None)
        self._trims = False
        """Whether blanks are left out: they follow a call."""
        self._pieces: list[Piece] = []

    def feed(self, text: str) -> list[Piece]:
        """Take more text; return what is known now, in order."""
        if self._at is _In.TEXT and not self._held and not self._trims and _FIRST.isdisjoint(text):
            return [Said(text)] if text else []  # nearly all text goes this way
        self._held += text
        while self._held and self._advance():
            pass
        return self._taken()

    def end(self) -> list[Piece]:
        """Say that nothing follows; return the rest. A call that is cut off stays as it is."""
        rest = self._raw + self._held
        told = self._at is _In.CALL and self._scanner.name
        if not told and (self._at in (_In.START, _In.TEXT) or rest.strip(_BETWEEN)):
            self._say(rest)
        self._raw = self._held = ""
        return self._taken()

    def _advance(self) -> bool:
        """Go one step on in what is held; False when more text is needed."""
        match self._at:
            case _In.START:
                return self._in_start()
            case _In.TEXT:
                return self._in_text()
            case _In.CALLS:
                return self._among_calls()
            case _In.CALL:
                return self._in_call()

    def _in_start(self) -> bool:
        head = self._held.lstrip()
        unclear = (
            head[:1] == "[" and MISTRAL_CALLS.startswith(head.rstrip()) and head.rstrip() != MISTRAL_CALLS
        )
        if not head or unclear:
            return False
        is_list = head[0] == "[" and head[1:].lstrip()[:1] == "{"
        self._at = _In.CALLS if head[0] == "{" or is_list else _In.TEXT
        return True

    def _in_text(self) -> bool:
        found = [(at, marker) for marker in _BEGINNINGS if (at := self._held.find(marker)) >= 0]
        if found:
            at, self._marker = min(found)
            self._say(self._held[:at])
            self._held = self._held[at + len(self._marker) :]
            self._raw = self._marker
            self._at = _In.CALLS
            return True
        cut = len(self._held) - max(_overlap(self._held, marker) for marker in _BEGINNINGS)
        self._say(self._held[:cut])
        self._held = self._held[cut:]
        return False

    def _among_calls(self) -> bool:
        """Find the next call, or the end of calls."""
        rest = self._held.lstrip(_BETWEEN)
        if not rest:
            return False
        for mark in _MARKS:
            if rest.startswith(mark):
                self._read(len(self._held) - len(rest) + len(mark))
                if mark == HERMES_END:
                    self._leave()
                return True
            if mark.startswith(rest):
                return False
        if rest[0] == "{":
            self._read(len(self._held) - len(rest))
            self._scanner = CallScanner(None if self._marker else self._names)
            self._at = _In.CALL
            return True
        if self._marker == MISTRAL_CALLS and len(rest) <= _MOST_NAME and "{" not in rest:
            return False
        name = _mistral_name(rest) if self._marker == MISTRAL_CALLS else ""
        if not name:
            self._leave()
            return True
        self._read(len(self._held) - len(rest) + rest.index("{"))
        self._scanner = CallScanner(None, name)
        self._at = _In.CALL
        self._tell(name)
        return True

    def _in_call(self) -> bool:
        scanner = self._scanner
        told = bool(scanner.name)
        read, arguments = scanner.feed(self._held)
        if scanner.name and not told:
            self._tell(scanner.name)
        self._read(read)
        if arguments:
            self._pieces.append(Arguments(self.calls - 1, arguments))
        if scanner.failed:
            self._leave()
        elif scanner.ended:
            self._at = _In.CALLS
        return scanner.failed or scanner.ended

    def _read(self, count: int) -> None:
        """Take note that so many characters were read as part of calls."""
        told = self._at is _In.CALL and self._scanner.name
        self._raw = "" if told else self._raw + self._held[:count]
        self._held = self._held[count:]

    def _tell(self, name: str) -> None:
        self._pieces.append(Called(self.calls, self._new_id(self.calls), name))
        self.calls += 1
        self._raw = ""
        self._trims = True

    def _leave(self) -> None:
        """Go back to text. What was read since the last call, if it was none, is said."""
        raw, self._raw = self._raw, ""
        self._at = _In.TEXT
        if raw.removesuffix(HERMES_END).strip(_BETWEEN):
            self._say(raw)

    def _say(self, text: str) -> None:
        if self._trims:
            text = text.lstrip()
        if text:
            self._trims = False
            self._at = _In.TEXT
            self._pieces.append(Said(text))

    def _taken(self) -> list[Piece]:
        """Take the pieces, texts that follow each other as one."""
        pieces, self._pieces = self._pieces, []
        taken: list[Piece] = []
        for piece in pieces:
            before = taken[-1] if taken else None
            if isinstance(piece, Said) and isinstance(before, Said):
                taken[-1] = Said(before.text + piece.text)
            else:
                taken.append(piece)
        return taken


def _mistral_name(text: str) -> str:
    """Return the name in `name[CALL_ID]id[ARGS]{`; empty if there is none."""
    before = text.partition("{")[0].strip().removesuffix(MISTRAL_ARGUMENTS)
    name = before.partition(MISTRAL_ID)[0].strip()
    return "" if len(name.split()) > 1 else name


def _overlap(text: str, marker: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a marker."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
