# SPDX-License-Identifier: GPL-3.0-only
"""Parse `/v1/messages` and `/v1/messages/count_tokens`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from modeld.dialects.anthropic.common import (
    AnthropicCountBody,
    AnthropicMessage,
    AnthropicMessagesBody,
    AnthropicTool,
    Block,
    DocumentBlock,
    ImageBlock,
    ResultPart,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from modeld.dialects.common.body import decode
from modeld.dialects.common.schema import schema_constraint, schema_text
from modeld.dialects.common.tool_calls import check_tools, chosen_tool, one_call_of, tool_of
from modeld.domain.request import (
    Constraint,
    GenerateRequest,
    Message,
    Order,
    Sampling,
    TemplateRequest,
    Tool,
    ToolCall,
)
from modeld.errors import InvalidRequest

MOST_CHARACTERS = 131_072
"""Of messages to be counted at once: so many take llama.cpp some 0.1 s, and the streams of the model wait."""
_EXAMPLE = '{"model": "llama", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}'
_messages = msgspec.json.Decoder(AnthropicMessagesBody)
_count = msgspec.json.Decoder(AnthropicCountBody)
_PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
"""What Anthropic's defaults say: all tokens by their probability."""
_Body = AnthropicMessagesBody | AnthropicCountBody


class ParsedMessages(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request: the order for the scheduler, and how the answer is to be told."""

    order: Order
    request: GenerateRequest
    stream: bool
    forced: bool = False
    """The text is bound to be a call."""
    one_call: bool = False
    """Calls behind the first are left out."""


def parse_messages(body: bytes) -> ParsedMessages:
    """Read the body of `POST /v1/messages`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _messages, _EXAMPLE)
    messages = _conversation(wire)
    if messages[-1].role == "assistant":
        raise InvalidRequest(
            "`messages` ends with an assistant's turn, and modeld does not continue one; end with a user's"
        )
    tools = _offered(wire)
    request = GenerateRequest(
        messages=messages,
        tools=tools,
        max_tokens=wire.max_tokens,
        sampling=_sampling(wire),
        stop=tuple(wire.stop_sequences or ()),
        constraint=_constraint(wire, tools),
    )
    choice = wire.tool_choice
    return ParsedMessages(
        order=Order(request=request, model=wire.model),
        request=request,
        stream=bool(wire.stream),
        forced=choice is not None and choice.type in {"any", "tool"},
        one_call=choice is not None and bool(choice.disable_parallel_tool_use),
    )


def parse_count(body: bytes) -> Order:
    """Read the body of `POST /v1/messages/count_tokens`. Raises: InvalidRequest that names the key."""
    wire = decode(body, _count, _EXAMPLE)
    messages, tools = _conversation(wire), _offered(wire)
    size = sum(len(turn.content) + sum(len(call.arguments) for call in turn.tool_calls) for turn in messages)
    size += sum(len(tool.parameters) + len(tool.description) for tool in tools)
    if size > MOST_CHARACTERS:
        raise InvalidRequest(f"this is {size} characters; send {MOST_CHARACTERS} at most to be counted")
    return Order(request=TemplateRequest(messages=messages, tools=tools, count=True), model=wire.model)


def _sampling(wire: AnthropicMessagesBody) -> Sampling:
    given: dict[str, object] = {
        name: value
        for name in ("temperature", "top_p", "top_k")
        if (value := getattr(wire, name)) is not None
    }
    return msgspec.structs.replace(_PLAIN, **given)


def _offered(wire: _Body) -> tuple[Tool, ...]:
    """Return the functions that the model is told of. Also refuses what else cannot be served."""
    if wire.thinking is not None and wire.thinking.type != "disabled":
        raise InvalidRequest(
            f'`thinking` of type "{wire.thinking.type[:40]}" is not served: thoughts are not set apart from '
            f"the answer. Leave it out, or set its type to disabled"
        )
    if wire.output_config is not None and wire.output_config.effort is not None:
        raise InvalidRequest("`output_config.effort` is not served: leave it out")
    tools = tuple(_tool(entry, number) for number, entry in enumerate(wire.tools or ()))
    check_tools(tools)
    choice = wire.tool_choice
    if choice is None or choice.type == "auto":
        return tools
    if choice.type == "none":
        return ()
    if not tools:
        raise InvalidRequest(f"`tool_choice` is {choice.type}, and there are no `tools`")
    if choice.type == "tool":
        chosen_tool(tools, choice.name or "", "tool_choice.name")
    return tools


def _constraint(wire: AnthropicMessagesBody, tools: tuple[Tool, ...]) -> Constraint | None:
    """Return what binds the text: a forced call, a schema, or one of both."""
    config, choice = wire.output_config, wire.tool_choice
    schema = None
    if config is not None and config.format is not None:
        schema = schema_constraint(config.format.schema, "output_config.format.schema")
    if choice is not None and choice.type in {"any", "tool"}:
        chosen = chosen_tool(tools, choice.name or "", "tool_choice.name") if choice.type == "tool" else tools
        return one_call_of(chosen)
    return one_call_of(tools, schema) if tools and schema is not None else schema


def _tool(entry: AnthropicTool, number: int) -> Tool:
    key = f"tools[{number}]"
    if entry.type not in (None, "custom"):
        raise InvalidRequest(
            f'`{key}.type` "{entry.type[:60]}" is not served: it runs on Anthropic\'s servers. Offer '
            f"functions of your own (type custom)"
        )
    if not isinstance(entry.input_schema, msgspec.Raw):
        raise InvalidRequest(f'`{key}` lacks the key "input_schema"')
    return tool_of(entry.name, entry.description, entry.input_schema, key, strict=entry.strict)


def _conversation(wire: _Body) -> tuple[Message, ...]:
    """Return the turns as templates know them: those of one role that follow each other are one."""
    names: dict[str, str] = {}
    turns: list[Message] = []
    system = wire.system if isinstance(wire.system, str) else _text(wire.system or (), "system")
    if system:
        turns.append(Message(role="system", content=system))
    for number, turn in enumerate(wire.messages):
        for message in _turns(turn, f"messages[{number}]", names):
            if turns and _joins(turns[-1], message):
                turns[-1] = _joined(turns[-1], message)
            else:
                turns.append(message)
    if not any(turn.role != "system" for turn in turns):
        raise InvalidRequest("`messages` has no text, and nothing else to answer")
    return tuple(turns)


def _joins(before: Message, message: Message) -> bool:
    return before.role == message.role != "tool"


def _joined(before: Message, message: Message) -> Message:
    return Message(
        role=before.role,
        content="\n".join(text for text in (before.content, message.content) if text),
        tool_calls=before.tool_calls + message.tool_calls,
    )


def _turns(turn: AnthropicMessage, key: str, names: dict[str, str]) -> list[Message]:
    """Return what a turn becomes: results of functions are turns of their own, before its text.

    `names` holds the functions of the calls so far, by their id.
    """
    if isinstance(turn.content, str):
        return [Message(role=turn.role, content=turn.content)] if turn.content else []
    results: list[Message] = []
    texts: list[TextBlock] = []
    calls: list[ToolCall] = []
    for number, block in enumerate(turn.content):
        place = f"{key}.content[{number}]"
        match block:
            case TextBlock():
                texts.append(block)
            case ToolUseBlock(id=call_id, name=name, input=given):
                _only("assistant", turn, place)
                names[call_id] = name
                calls.append(ToolCall(id=call_id, name=name, arguments=schema_text(given, f"{place}.input")))
            case ToolResultBlock():
                _only("user", turn, place)
                results.append(_result(block, place, names))
            case ImageBlock() | DocumentBlock():
                raise _unseen(block, place)
            case _:
                pass  # Thoughts of earlier answers.
    text = _text(texts, key)
    if text or calls:
        results.append(Message(role=turn.role, content=text, tool_calls=tuple(calls)))
    return results


def _only(role: str, turn: AnthropicMessage, place: str) -> None:
    if turn.role != role:
        raise InvalidRequest(f"`{place}` belongs into a turn of role {role}, not {turn.role}")


def _result(block: ToolResultBlock, place: str, names: dict[str, str]) -> Message:
    name = names.get(block.tool_use_id)
    if name is None:
        raise InvalidRequest(
            f'`{place}.tool_use_id` "{block.tool_use_id[:80]}" is the id of no `tool_use` in a turn before'
        )
    content = block.content
    text = content if isinstance(content, str) else _text(content or (), f"{place}.content")
    text = f"Error: {text}" if block.is_error else text
    return Message(role="tool", content=text, tool_call_id=block.tool_use_id, name=name)


def _text(blocks: Sequence[ResultPart], key: str) -> str:
    texts: list[str] = []
    for number, block in enumerate(blocks):
        if not isinstance(block, TextBlock):
            raise _unseen(block, f"{key}[{number}]")
        texts.append(block.text)
    return "\n".join(text for text in texts if text)


def _unseen(block: Block, place: str) -> InvalidRequest:
    if isinstance(block, ImageBlock):
        return InvalidRequest(f"`{place}` is an image, and no model has vision here; send text alone")
    return InvalidRequest(f"`{place}` is a document, and modeld reads no files; send its text")
