# SPDX-License-Identifier: GPL-3.0-only
"""Put functions into a prompt: as the template expects, or as plain messages. Pure.

Whatever has its own variable `tools` in its template gets the values that Hugging Face's chat templating
defines. For others, what may be called is told in a system message, and calls and their results become
text, in the form of Hermes 2 Pro, which most models have seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from msgspec.structs import replace

from modeld.domain.request import Message, Tool, ToolCall
from modeld.domain.tool_calls import HERMES_BEGIN, HERMES_END

_INTRODUCTION = (
    "You can call functions. Each line between <tools> and </tools> describes one of them, and the JSON "
    "schema of its arguments:"
)
_HOW = (
    "To call one, answer with nothing but a JSON object of its name and its arguments, in this form:\n"
    f'{HERMES_BEGIN}\n{{"name": "the function", "arguments": {{"an argument": "its value"}}}}\n{HERMES_END}'
)

Protect = Callable[[str], str]


def tool_values(tools: Sequence[Tool], protect: Protect) -> list[dict[str, Any]] | None:
    """Return the value of a template's variable `tools`, each text in it passed through `protect`."""
    return [_described(tool, protect) for tool in tools] or None


def call_values(calls: Iterable[ToolCall], protect: Protect) -> list[dict[str, Any]]:
    """Return a message's `tool_calls`, arguments as an object where they are one."""
    return [
        {
            "id": protect(call.id),
            "type": "function",
            "function": {
                "name": protect(call.name),
                "arguments": _protected(_loaded(call.arguments), protect),
            },
        }
        for call in calls
    ]


def message_texts(messages: Iterable[Message], tools: Iterable[Tool]) -> list[str]:
    """Return all texts that may come into a prompt."""
    texts: list[str] = []
    for message in messages:
        texts += [message.role, message.content, message.tool_call_id, message.name]
        for call in message.tool_calls:
            texts += [
                call.id,
                call.name,
                call.arguments,
                json.dumps(_loaded(call.arguments), ensure_ascii=False),
            ]
    for tool in tools:
        texts += [tool.name, tool.description, tool.parameters]
        texts.append(json.dumps(_loaded(tool.parameters), ensure_ascii=False))
    return texts


def fold_system(messages: Sequence[Message], tools: Sequence[Tool], *, into_system: bool) -> list[Message]:
    """Return plain messages: tools told in the first of them, calls and results as text.

    `into_system`: in a system message; else in front of the user's first words, for templates that
    have no such role.
    """
    plain: list[Message] = []
    after_tool = False
    for message in messages:
        if message.role == "tool":
            text = f"<tool_response>\n{message.content}\n</tool_response>"
            if after_tool:
                plain[-1] = replace(plain[-1], content=f"{plain[-1].content}\n{text}")
            else:
                plain.append(Message(role="user", content=text))
        else:
            plain.append(Message(role=message.role, content=_with_calls(message)))
        after_tool = message.role == "tool"
    if not tools:
        return plain
    lines = [json.dumps(_described(tool, str)["function"], ensure_ascii=False) for tool in tools]
    told = "\n".join((_INTRODUCTION, "<tools>", *lines, "</tools>", _HOW))
    wanted = "system" if into_system else "user"
    at = next((at for at, message in enumerate(plain) if message.role == wanted), None)
    if at is None or (into_system and at > 0):
        return [Message(role=wanted, content=told), *plain]
    parts = (plain[at].content, told) if into_system else (told, plain[at].content)
    plain[at] = replace(plain[at], content="\n\n".join(filter(None, parts)))
    return plain


def _with_calls(message: Message) -> str:
    calls = [
        f"{HERMES_BEGIN}\n"
        + json.dumps({"name": call.name, "arguments": _loaded(call.arguments)}, ensure_ascii=False)
        + f"\n{HERMES_END}"
        for call in message.tool_calls
    ]
    return "\n".join(filter(None, (message.content, *calls)))


def _described(tool: Tool, protect: Protect) -> dict[str, Any]:
    function = {
        "name": protect(tool.name),
        "description": protect(tool.description),
        "parameters": _protected(_loaded(tool.parameters), protect),
    }
    return {"type": "function", "function": function}


def _loaded(text: str) -> Any:
    """Return the value of a JSON text; a text that is none stays what it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _protected(value: Any, protect: Protect) -> Any:
    match value:
        case str():
            return protect(value)
        case dict():
            pairs = cast("dict[str, Any]", value).items()
            return {protect(key): _protected(each, protect) for key, each in pairs}
        case [*children]:
            return [_protected(each, protect) for each in children]
        case _:
            return value
