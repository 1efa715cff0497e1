# SPDX-License-Identifier: GPL-3.0-only
"""Functions that a body offers: checked, and made a grammar where one must be called. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import msgspec

from modeld.core.call_schema import schema_of_call
from modeld.core.request import Constraint, ConstraintKind, Tool
from modeld.dialects.framing import json_bytes
from modeld.dialects.schema import schema_text
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


def named(tools: Sequence[Tool], name: str, key: str = "tool_choice") -> tuple[Tool, ...]:
    """Return the one function of that name. Raises: InvalidRequest if there is none."""
    found = tuple(tool for tool in tools if tool.name == name)
    if not found:
        raise InvalidRequest(f'`{key}` names the function "{name[:80]}", which is not among `tools`')
    return found


def one_call_of(tools: Sequence[Tool], or_else: str | None = None) -> Constraint:
    """Return the constraint that the text is the call of one of these.

    That is a JSON object of `name` and `arguments`.

    `or_else`: JSON text of a schema that it may satisfy instead.
    """
    schema = schema_of_call(tools, or_else)
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json_bytes(schema).decode())


def call_id(request_id: str, choice: int, number: int) -> str:
    """Return the id of a call: the same for the same place, nine letters and digits, as Mistral's need it."""
    digest = int.from_bytes(hashlib.sha256(f"{request_id} {choice} {number}".encode()).digest())
    letters: list[str] = []
    for _ in range(_ID_CHARACTERS):
        digest, letter = divmod(digest, len(_ALPHABET))
        letters.append(_ALPHABET[letter])
    return "".join(letters)
