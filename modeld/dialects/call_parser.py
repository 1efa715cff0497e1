# SPDX-License-Identifier: GPL-3.0-only
"""Find the end of a JSON value that comes in parts, and read a complete one as calls of functions. Pure."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import msgspec

_ARGUMENTS = ("arguments", "parameters")
_WRAPPERS = ("tool_call", "function")
"""Keys under which some models put the whole call, in the order in which one may be within the other."""
_BESIDE = frozenset({"id", "type"})
_KEYS = frozenset({"name", *_ARGUMENTS, *_BESIDE})
_NO_ARGUMENTS = "{}"

_HEAD = 64
"""The first key of a call comes within so many characters."""
_FIRST_KEY = re.compile(r'\[?\s*\{\s*"([^"\\\x00-\x1f]*)"')
_BEFORE_IT = re.compile(r'\[?\s*(?:\{\s*(?:"[^"\\\x00-\x1f]*)?)?')
_IN_STRING = re.compile(r'["\\\x00-\x1f]')
"""What ends a string, hides its next character, or cannot be in one."""
_OUTSIDE = re.compile(r"[^\w\s,:.+-]")
"""Brackets and quotes, and what JSON has nowhere outside strings."""


NO_CALL = (msgspec.DecodeError, UnicodeError, ValueError, KeyError, RecursionError)
"""What is raised for a value that is no call."""


class Call(NamedTuple):
    """A call: the name of its function, and its arguments as they were written, the JSON of an object."""

    name: str
    arguments: str


class ValueEnd:
    """Finds the end of one JSON object or list, and looks at each character once.

    Only what can be seen in passing makes it fail: whether the value is JSON shows when it is decoded.

    Attributes:
      found: whether the value is complete.
      failed: whether it cannot become JSON.
    """

    def __init__(self) -> None:
        self.found = False
        self.failed = False
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """Read on; return how many characters belong to the value, or stand before what makes it fail."""
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (_IN_STRING if self._quoted else _OUTSIDE).search(text, at)
            if found is None:
                break
            at = found.end()
            match found[0]:
                case '"':
                    self._quoted = not self._quoted
                case "\\" if self._quoted:
                    self._escaped = True
                case "{" | "[":
                    self._depth += 1
                case "}" | "]":
                    self._depth -= 1
                    self.found = not self._depth
                case _:
                    self.failed = True
                    return found.start()
            if self.found:
                return at
        return len(text)


def begins_call(text: str) -> bool | None:
    """Whether an object, or a list of objects, begins with a key that a call has; None: not known yet.

    So that other JSON need not be held back until it is complete.
    """
    head = text[:_HEAD]
    if key := _FIRST_KEY.match(head):
        return key[1] in _KEYS or key[1] in _WRAPPERS
    return None if len(head) < _HEAD and _BEFORE_IT.fullmatch(head) else False


def marked_call(value: str) -> list[Call]:
    """Return the call that a complete object behind a marker is. Raises: NO_CALL."""
    return [_call(value, _NO_ARGUMENTS)]


def bare_calls(value: str) -> list[Call]:
    """Return the calls that a complete object, or list of objects, is without a marker. Raises: NO_CALL.

    Each must have arguments: an object with nothing but a name is data.
    """
    if value[0] == "{":
        return [_call(value)]
    return [_call(bytes(entry).decode()) for entry in msgspec.json.decode(value, type=list[msgspec.Raw])]


def arguments_of(value: str) -> str:
    """Return arguments as they were written: an object, or the one that a string holds. Raises: NO_CALL."""
    if value[0] == '"':
        value = msgspec.json.decode(value, type=str)
    msgspec.json.decode(value, type=dict[str, object])
    return value


def _call(value: str, arguments: str | None = None) -> Call:
    """Return the call that an object is; `arguments`: those of one that has none."""
    members = _members(value)
    for wrapper in _WRAPPERS:
        if wrapper in members and members.keys() <= {wrapper, *_BESIDE}:
            members = _members(members[wrapper])
    given = [members[key] for key in _ARGUMENTS if key in members]
    if not given and arguments is not None:
        given = [arguments]
    name = msgspec.json.decode(members["name"], type=str)
    if not name or not members.keys() <= _KEYS or len(given) != 1:
        raise ValueError("this object has no name, too few keys or too many")
    return Call(name, arguments_of(given[0]))


def _members(value: str) -> dict[str, str]:
    """Return the members of an object, their values as they were written. Raises: NO_CALL.

    Also of one that has a key twice, as its readers would not agree which of the two counts.
    """
    members = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    if len(json.loads(value, object_pairs_hook=list)) != len(members):
        raise ValueError("this object has a key twice")
    return {key: bytes(member).decode() for key, member in members.items()}
