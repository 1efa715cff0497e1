# SPDX-License-Identifier: GPL-3.0-only
"""Functions in bodies of Ollama, and calls in its answers: each whole, its arguments an object. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from modeld.core.request import Constraint, Message, Tool, ToolCall
from modeld.dialects.framing import json_bytes
from modeld.dialects.ollama.wire import OllamaMessage, OllamaTool, OllamaToolCall
from modeld.dialects.tool_reader import Arguments, Called, Piece, Said, ToolReader
from modeld.dialects.tools import call_id, check_tools, one_call_of, tool_of
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
    return one_call_of(tools, constraint.text) if tools and constraint is not None else constraint


def message_of(turn: OllamaMessage, role: str, number: int) -> Message:
    """Return a turn with its calls, or what a function answered."""
    return Message(
        role=role,
        content=turn.content or "",
        tool_calls=tuple(_call(call, number, at) for at, call in enumerate(turn.tool_calls or ())),
        tool_call_id=turn.tool_call_id or "",
        name=turn.tool_name or "",
    )


class Caller:
    """Reads the text of one answer that may call functions. A call is told when it is complete.

    Args:
      tools: those that were offered.
      request_id: of which ids of calls are made.
    """

    def __init__(self, tools: Iterable[Tool], request_id: str) -> None:
        self._reader = ToolReader(
            {tool.name for tool in tools}, lambda number: call_id(request_id, 0, number)
        )
        self._call: Called | None = None
        self._arguments = ""

    def feed(self, text: str) -> list[Part]:
        """Take more text; return what is known now."""
        return self._parts(self._reader.feed(text))

    def end(self) -> list[Part]:
        """Say that nothing follows; return the rest."""
        return [*self._parts(self._reader.end()), *self._complete()]

    def _parts(self, pieces: Iterable[Piece]) -> list[Part]:
        parts: list[Part] = []
        for piece in pieces:
            match piece:
                case Said(text=text):
                    parts += [*self._complete(), text]
                case Called():
                    parts += self._complete()
                    self._call = piece
                case Arguments(text=text):
                    self._arguments += text
        return parts

    def _complete(self) -> list[Part]:
        """Return the call that was read, if any. One that was cut off is text: it has no object."""
        call, self._call = self._call, None
        text, self._arguments = self._arguments, ""
        if call is None:
            return []
        try:
            arguments = msgspec.json.decode(text or "{}", type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, RecursionError):
            return [f"{call.name}{text}"]
        function = OllamaAnswerFunction(index=call.number, name=call.name, arguments=arguments)
        return [OllamaAnswerCall(id=call.id, function=function)]


def _call(call: OllamaToolCall, turn: int, number: int) -> ToolCall:
    return ToolCall(
        id=call.id or call_id(f"turn {turn}", 0, number),
        name=call.function.name,
        arguments=json_bytes(call.function.arguments).decode(),
    )
