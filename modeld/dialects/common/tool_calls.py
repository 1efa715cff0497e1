# SPDX-License-Identifier: GPL-3.0-only
"""Check the functions that a body offers, and make a constraint where one must be called. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from modeld.dialects.common.schema import schema_text
from modeld.domain.request import Constraint, ConstraintKind, Tool
from modeld.errors import InvalidRequest

MOST_TOOLS = 128
"""As in OpenAI's API."""
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_NO_ARGUMENTS = '{"type": "object", "properties": {}}'
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_CHARACTERS = 9


def tool_of(
    name: str,
    description: str | None,
    parameters: msgspec.Raw | None,
    key: str,
    *,
    strict: bool | None = None,
) -> Tool:
    """Return a function; `key` is its place in the body. Raises: InvalidRequest for what cannot be one."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f'`{key}.name` is "{name[:80]}"; a name has 1 to 128 letters, digits, dots, colons, dashes and '
            f"underscores"
        )
    given = parameters is not None and bytes(parameters) not in (b"", b"null")
    text = schema_text(parameters, f"{key}.parameters") if parameters is not None and given else ""
    return Tool(
        name=name, description=description or "", parameters=text or _NO_ARGUMENTS, strict=bool(strict)
    )


def check_tools(tools: Sequence[Tool], key: str = "tools") -> None:
    """Refuse too many functions, and two of one name. Raises: InvalidRequest."""
    if len(tools) > MOST_TOOLS:
        raise InvalidRequest(f"`{key}` has {len(tools)} functions; send {MOST_TOOLS} at most")
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            raise InvalidRequest(f'`{key}` has two functions called "{tool.name}"')
        seen.add(tool.name)


def chosen_tool(tools: Sequence[Tool], name: str, key: str = "tool_choice") -> tuple[Tool, ...]:
    """Return the one function of that name. Raises: InvalidRequest if there is none."""
    found = tuple(tool for tool in tools if tool.name == name)
    if not found:
        raise InvalidRequest(f'`{key}` names the function "{name[:80]}", which is not among `tools`')
    return found


def one_call_of(tools: Sequence[Tool], answer: Constraint | None = None) -> Constraint:
    """Return the constraint that the text is the call of one of these.

    That is a JSON object of `name` and `arguments`.

    `answer`: the schema of a text that may stand in its place.
    """
    text, strict = ("", False) if answer is None else (answer.text, answer.strict)
    return Constraint(kind=ConstraintKind.CALL, text=text, tools=tuple(tools), strict=strict)


def call_id(request_id: str, choice: int, number: int) -> str:
    """Return the id of a call: the same for the same place, nine letters and digits, as Mistral's need it."""
    digest = int.from_bytes(hashlib.sha256(f"{request_id} {choice} {number}".encode()).digest())
    letters: list[str] = []
    for _ in range(_ID_CHARACTERS):
        digest, letter = divmod(digest, len(_ALPHABET))
        letters.append(_ALPHABET[letter])
    return "".join(letters)


# ----------------------------------------------------------------------
# Find the end of a JSON value that comes in parts, and read a complete one as calls of functions. Pure.

_ARGUMENTS = ("arguments", "parameters")
_WRAPPERS = ("tool_call", "function")
"""Keys under which some models put the whole call, in the order in which one may be within the other."""
_BESIDE = frozenset({"id", "type"})
_KEYS = frozenset({"name", *_ARGUMENTS, *_BESIDE})
_EMPTY_OBJECT = "{}"

_DEEPEST = 200
"""Objects and lists within each other, in a call."""
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


class ParsedCall(NamedTuple):
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
                    if self._depth > _DEEPEST:  # Deeper, the decoder's stack would decide.
                        self.failed = True
                        return found.start()
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


def marked_call(value: str) -> list[ParsedCall]:
    """Return the call that a complete object behind a marker is. Raises: NO_CALL."""
    return [_call(value, _EMPTY_OBJECT)]


def bare_calls(value: str) -> list[ParsedCall]:
    """Return the calls that a complete object, or list of objects, is without a marker. Raises: NO_CALL.

    Each must have arguments: an object with nothing but a name is data.
    """
    if value[0] == "{":
        return [_call(value)]
    entries = msgspec.json.decode(value, type=list[msgspec.Raw])
    return [_call(bytes(entry).decode()) for entry in entries]


def arguments_of(value: str) -> str:
    """Return arguments as they were written: an object, or the one that a string holds. Raises: NO_CALL."""
    if value[0] == '"':
        value = msgspec.json.decode(value, type=str)
    msgspec.json.decode(value, type=dict[str, object])
    _refuse_twins(value)
    return value


def _call(value: str, arguments: str | None = None) -> ParsedCall:
    """Return the call that an object is; `arguments`: those of one that has none."""
    _refuse_twins(value)
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
    return ParsedCall(name, arguments_of(given[0]))


def _members(value: str) -> dict[str, str]:
    """Return the members of an object, their values as they were written. Raises: NO_CALL."""
    members = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    return {key: bytes(member).decode() for key, member in members.items()}


def _refuse_twins(value: str) -> None:
    """Refuse an object that has a key twice, at any depth: its readers do not agree which of the two counts.

    Raises: NO_CALL.
    """
    json.loads(value, object_pairs_hook=_as_dict)


def _as_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has a key twice")
    return members
