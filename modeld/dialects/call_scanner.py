# SPDX-License-Identifier: GPL-3.0-only
"""Reads one call of a function, a JSON object that comes in parts: name and arguments, as they come. Pure.

Keys may come in any order, arguments under either of their names, and the whole within `function`. The
arguments are passed on as they are written; a string is taken for JSON that was written into a string.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto

import msgspec

_NAME_KEYS = ("name", "function", "tool_name")
_ARGUMENT_KEYS = ("arguments", "parameters")
_WRAPPERS = ("function", "tool_call")
_KNOWN = frozenset({*_NAME_KEYS, *_ARGUMENT_KEYS, *_WRAPPERS, "type", "id"})
_BLANKS = " \t\r\n"
NO_ARGUMENTS = "{}"


class _At(Enum):
    """What is read next."""

    OBJECT = auto()
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_STRING = auto()
    IN_NEST = auto()
    IN_SCALAR = auto()
    AFTER = auto()
    END = auto()


class CallScanner:
    """Reads one object. Feed it text until `ended` or `failed`.

    Args:
      names: functions that may be called; None: any, as something before the object says that it is a call.
      name: of the function, where it came before the object: that is then its arguments.

    Attributes:
      name: of the function; empty until it is known.
      ended: whether the object is complete.
      failed: whether this is no call, or no JSON.
    """

    def __init__(self, names: Collection[str] | None, name: str = "") -> None:
        self.name = name
        self.ended = False
        self.failed = False
        self._names = names
        self._at = _At.VALUE if name else _At.OBJECT
        self._key = _ARGUMENT_KEYS[0] if name else ""
        self._only_arguments = bool(name)
        self._wrapped = 0
        self._nest = 0
        self._quoted = False
        self._escaped = False
        self._word: list[str] = []
        self._arguments: list[str] = []
        self._has_arguments = False

    def feed(self, text: str) -> tuple[int, str]:
        """Read on; return how many characters were read, and the arguments that can be passed on."""
        read = 0
        for character in text:
            if self.ended or self.failed:
                break
            if self._read(character):
                read += 1
        if self.ended and self.name and not self._has_arguments:
            self._arguments.append(NO_ARGUMENTS)
        if not self.name:
            return read, ""
        arguments = "".join(self._arguments)
        self._arguments.clear()
        return read, arguments

    def _read(self, character: str) -> bool:
        """Read a character; False if it belongs to what follows, so that it must be read again."""
        if character in _BLANKS and self._at not in (_At.IN_KEY, _At.IN_STRING, _At.IN_NEST):
            return True
        match self._at:
            case _At.OBJECT:
                self._go(_At.KEY, character == "{")
            case _At.KEY if character in ",}":
                if character == "}":
                    self._close()
            case _At.KEY:
                self._word = []
                self._go(_At.IN_KEY, character == '"')
            case _At.IN_KEY | _At.IN_STRING:
                if self._string_ends(character):
                    self._end_string()
            case _At.COLON:
                self._go(_At.VALUE, character == ":")
            case _At.VALUE:
                self._begin_value(character)
            case _At.IN_NEST:
                self._in_nest(character)
            case _At.IN_SCALAR if character in ",}":
                self._at = _At.AFTER
                return False
            case _At.AFTER:
                self._go(_At.KEY, character in ",}")
                if character == "}":
                    self._close()
            case _:
                pass
        return True

    def _go(self, at: _At, allowed: bool) -> None:
        self._at = at
        self.failed = self.failed or not allowed

    def _close(self) -> None:
        """An object ended: that of the call, or one that it was wrapped in."""
        if self._wrapped:
            self._wrapped -= 1
            self._at = _At.AFTER
            return
        self._at = _At.END
        self.ended = True
        self.failed = not self.name

    def _string_ends(self, character: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            return True
        self._word.append(character)
        return False

    def _end_string(self) -> None:
        try:
            text = msgspec.json.decode(f'"{"".join(self._word)}"', type=str)
        except (msgspec.DecodeError, UnicodeError):
            self.failed = True
            return
        if self._at is _At.IN_KEY:
            self._key = text
            self._go(_At.COLON, self._names is None or bool(self.name) or text in _KNOWN)
            return
        self._at = _At.AFTER
        if self._key in _NAME_KEYS and not self.name:
            self.failed = not text or (self._names is not None and text not in self._names)
            self.name = "" if self.failed else text
        elif self._key in _ARGUMENT_KEYS:
            self._arguments.append(text)
            self._has_arguments = True

    def _begin_value(self, character: str) -> None:
        takes = self._key in _ARGUMENT_KEYS
        if character == "{" and self._key in _WRAPPERS:
            self._wrapped += 1
            self._at = _At.KEY
        elif character in "{[":
            self._at = _At.IN_NEST
            self._nest = 1
            if takes:
                self._has_arguments = True
                self._arguments.append(character)
        elif character == '"':
            self._word = []
            self._at = _At.IN_STRING
        else:
            self._go(_At.IN_SCALAR, character not in "}],:" and not self._only_arguments)

    def _in_nest(self, character: str) -> None:
        if self._key in _ARGUMENT_KEYS:
            self._arguments.append(character)
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._quoted = False
        elif character == '"':
            self._quoted = True
        elif character in "{[":
            self._nest += 1
        elif character in "}]":
            self._nest -= 1
            if not self._nest:
                self._at = _At.AFTER
                self.ended = self._only_arguments
