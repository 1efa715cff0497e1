# SPDX-License-Identifier: GPL-3.0-only
"""Parse `POST /v1/chat/completions`. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from modeld.dialects.common.body import MAX_INT32
from modeld.dialects.common.schema import schema_constraint
from modeld.dialects.common.tool_calls import check_tools, chosen_tool, one_call_of, tool_of
from modeld.dialects.openai.common import (
    AnyJson,
    ChoiceKeys,
    ParsedRequest,
    choices_of,
    include_usage,
    read,
    refuse,
    sampling_of,
    stop_of,
)
from modeld.dialects.openai.content_parts import ChatPart, text_of
from modeld.domain.request import (
    AS_MANY_AS_FIT,
    Constraint,
    ConstraintKind,
    GenerateRequest,
    Message,
    Tool,
    ToolCall,
)
from modeld.errors import InvalidRequest

ANY_OBJECT = '{"type": "object"}'
MOST_TOP_LOGPROBS = 20
_Count = Annotated[int, Meta(ge=1, le=MAX_INT32)]
Schema = Annotated[
    msgspec.Raw | UnsetType, Meta(description="A JSON schema", extra_json_schema={"type": ["object", "null"]})
]


class CalledBody(msgspec.Struct, forbid_unknown_fields=True):
    """The function of a call."""

    name: str
    arguments: Annotated[str, Meta(description="JSON text")]


class CallBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A call that an assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledBody
    index: int | None = None


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One turn. What clients send back of an answer is taken, also where it says nothing."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        str | list[ChatPart] | None, Meta(description="Plain text, or parts; only parts of text are served")
    ] = None
    name: str | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[AnyJson], Meta(max_length=0)] | None = None
    reasoning_content: Annotated[str | None, Meta(description="Taken, and not used")] = None
    audio: None = None
    function_call: None = None


class FunctionBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A function that may be called."""

    name: str
    description: str | None = None
    parameters: Schema = UNSET
    strict: Annotated[
        bool | None,
        Meta(description="true: a schema that cannot be compiled is refused; calls fit it anyway"),
    ] = None


class ToolBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionBody


class NameBody(msgspec.Struct, forbid_unknown_fields=True):
    """The name of a function."""

    name: str


class NamedChoice(msgspec.Struct, forbid_unknown_fields=True):
    """This function must be called."""

    type: Literal["function"]
    function: NameBody


class SchemaFormat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A JSON schema with its name."""

    name: str = ""
    description: str | None = None
    schema: Schema = UNSET
    strict: Annotated[bool | None, Meta(description="true: refuse a schema that cannot be kept")] = None


class TextResponse(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Free text."""


class ObjectResponse(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class SchemaResponse(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """JSON that satisfies a schema."""

    json_schema: SchemaFormat


class ChatBody(ChoiceKeys, kw_only=True):
    """What `POST /v1/chat/completions` takes."""

    messages: list[ChatMessage]
    max_completion_tokens: Annotated[
        _Count | None,
        Meta(description="Default: what a slot's share of the KV cache leaves alongside the prompt"),
    ] = None
    max_tokens: Annotated[_Count | None, Meta(description="The old name of max_completion_tokens")] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MOST_TOP_LOGPROBS)] | None = None
    response_format: TextResponse | ObjectResponse | SchemaResponse | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: Annotated[bool | None, Meta(description="false: only the first call is told")] = None
    safety_identifier: Annotated[str | None, Meta(description="Taken, and not used")] = None
    prompt_cache_key: Annotated[
        str | None, Meta(description="Taken: prompts share their beginnings anyway")
    ] = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None
    store: Annotated[bool | None, Meta(description="Nothing is stored; true is refused")] = None
    audio: None = None
    function_call: None = None
    functions: None = None
    metadata: None = None
    prediction: None = None
    prompt_cache_retention: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None


_decoder = msgspec.json.Decoder(ChatBody)


def parse_chat(body: bytes) -> ParsedRequest:
    """Read the body of `POST /v1/chat/completions`. Raises: InvalidRequest, InvalidGrammar."""
    wire = read(body, _decoder, '{"model": "...", "messages": [{"role": "user", "content": "Hello"}]}')
    refuse(wire, "store", ", as nothing is stored")
    if not wire.messages:
        raise InvalidRequest("`messages` is empty; give it at least one message")
    tools, constraint = tools_of(
        [
            tool_of(
                tool.function.name,
                tool.function.description,
                raw_schema(tool.function.parameters),
                key,
                strict=tool.function.strict,
            )
            for number, tool in enumerate(wire.tools or ())
            for key in (f"tools[{number}].function",)
        ],
        wire.tool_choice.function.name if isinstance(wire.tool_choice, NamedChoice) else wire.tool_choice,
        _format_of(wire),
    )
    request = GenerateRequest(
        messages=tuple(_message(message, f"messages[{at}]") for at, message in enumerate(wire.messages)),
        tools=tools,
        max_tokens=_max_tokens(wire),
        sampling=sampling_of(wire),
        stop=stop_of(wire),
        ignore_eos=bool(wire.ignore_eos),
        logprobs=_logprobs(wire),
        constraint=constraint,
    )
    return ParsedRequest(
        orders=choices_of(wire, [request]),
        n=wire.n or 1,
        stream=bool(wire.stream),
        include_usage=include_usage(wire),
        tools=tools,
        forced=bool(tools) and wire.tool_choice not in (None, "auto"),
        one_call=wire.parallel_tool_calls is False,
    )


def tools_of(
    tools: list[Tool], choice: str | None, answer: Constraint | None
) -> tuple[tuple[Tool, ...], Constraint | None]:
    """Return the tools that the model is told of, and what its text must match.

    Args:
      tools: all that the body has.
      choice: none, auto, required, or the name of one of them.
      answer: what binds an answer that is no call.

    Raises: InvalidRequest.
    """
    check_tools(tools)
    if not tools and choice not in (None, "none", "auto"):
        raise InvalidRequest(f'`tool_choice` is "{choice}", but there are no `tools`')
    match choice:
        case "none":
            return (), answer
        case None | "auto":
            both = tools and answer is not None
            return tuple(tools), one_call_of(tools, answer) if both else answer
        case "required":
            return tuple(tools), one_call_of(tools)
        case name:
            return tuple(tools), one_call_of(chosen_tool(tools, name))


def message_of(
    role: str,
    content: str,
    calls: tuple[ToolCall, ...] = (),
    call: str | None = None,
    name: str | None = None,
) -> Message:
    """Return a turn under the name of its role that templates know."""
    roles = {"developer": "system", "function": "tool"}
    named = name if role in ("tool", "function") else None
    return Message(
        role=roles.get(role, role),
        content=content,
        tool_calls=calls,
        tool_call_id=call or "",
        name=named or "",
    )


def _message(wire: ChatMessage, place: str) -> Message:
    if wire.tool_calls and wire.role != "assistant":
        raise InvalidRequest(f"`{place}.tool_calls` are for an assistant's turn, not one of {wire.role}")
    content = text_of(wire.content, f"{place}.content")
    if content is None and not wire.tool_calls and wire.refusal is None:
        raise InvalidRequest(f"`{place}` lacks its `content`")
    calls = tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in wire.tool_calls or ()
    )
    return message_of(wire.role, content or wire.refusal or "", calls, wire.tool_call_id, wire.name)


def _max_tokens(wire: ChatBody) -> int:
    if wire.max_tokens is not None and wire.max_completion_tokens not in (None, wire.max_tokens):
        raise InvalidRequest("`max_tokens` and `max_completion_tokens` mean the same; give one of them")
    return wire.max_completion_tokens or wire.max_tokens or AS_MANY_AS_FIT


def _logprobs(wire: ChatBody) -> int | None:
    if wire.top_logprobs is not None and not wire.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs` to be true")
    return (wire.top_logprobs or 0) if wire.logprobs else None


def _format_of(wire: ChatBody) -> Constraint | None:
    """Return what binds the answer; None for free text."""
    match wire.response_format:
        case SchemaResponse(json_schema=body):
            raw = raw_schema(body.schema)
            if raw is None:
                raise InvalidRequest("`response_format.json_schema` lacks its `schema`")
            return schema_constraint(raw, "response_format.json_schema.schema", strict=body.strict)
        case ObjectResponse():
            return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=ANY_OBJECT)
        case _:
            return None


def raw_schema(value: msgspec.Raw | UnsetType) -> msgspec.Raw | None:
    """Return a schema in a body; None where it is left out, or null."""
    return None if not isinstance(value, msgspec.Raw) or bytes(value) == b"null" else value
