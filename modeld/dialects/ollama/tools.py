# SPDX-License-Identifier: GPL-3.0-only
"""Read functions in Ollama's bodies and render calls in its answers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from modeld.dialects.common.streaming import json_bytes
from modeld.dialects.common.tool_calls import call_id, check_tools, one_call_of, tool_of
from modeld.dialects.common.tool_reader import Piece, TextPiece
from modeld.dialects.ollama.common import OllamaMessage, OllamaTool, OllamaToolCall
from modeld.domain.request import Constraint, Message, Tool, ToolCall
from modeld.errors import InvalidRequest


class OllamaAnswerFunction(msgspec.Struct, frozen=True, kw_only=True):
    """Which function is called, with what; `index` counts the calls of an answer."""

    index: int
    name: str
    arguments: dict[str, msgspec.Raw]


class OllamaAnswerCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model makes."""

    id: str
    function: OllamaAnswerFunction


Part = str | OllamaAnswerCall
"""Text, or a call."""


def tools_of(given: Sequence[OllamaTool]) -> tuple[Tool, ...]:
    """Return the functions that a body offers. Raises: InvalidRequest."""
    tools: list[Tool] = []
    for number, entry in enumerate(given):
        if entry.type not in (None, "function"):
            raise InvalidRequest(f'`tools[{number}].type` must be function, not "{entry.type[:40]}"')
        function, key = entry.function, f"tools[{number}].function"
        parameters = function.parameters if isinstance(function.parameters, msgspec.Raw) else None
        tools.append(tool_of(function.name, function.description, parameters, key))
    check_tools(tools)
    return tuple(tools)


def call_or(tools: Sequence[Tool], constraint: Constraint | None) -> Constraint | None:
    """Return what binds a text that may be a call, too: with a `format`, one of both."""
    return one_call_of(tools, constraint) if tools and constraint is not None else constraint


def message_of(turn: OllamaMessage, role: str, number: int) -> Message:
    """Return a turn with its calls, or what a function answered."""
    return Message(
        role=role,
        content=turn.content or "",
        tool_calls=tuple(_call(call, number, at) for at, call in enumerate(turn.tool_calls or ())),
        tool_call_id=turn.tool_call_id or "",
        name=turn.tool_name or "",
    )


def part_of(piece: Piece) -> Part:
    """Return a piece of an answer as it is written."""
    if isinstance(piece, TextPiece):
        return piece.text
    arguments = msgspec.json.decode(piece.arguments, type=dict[str, msgspec.Raw])
    function = OllamaAnswerFunction(index=piece.number, name=piece.name, arguments=arguments)
    return OllamaAnswerCall(id=piece.id, function=function)


def _call(call: OllamaToolCall, turn: int, number: int) -> ToolCall:
    return ToolCall(
        id=call.id or call_id(f"turn {turn}", 0, number),
        name=call.function.name,
        arguments=json_bytes(call.function.arguments).decode(),
    )
