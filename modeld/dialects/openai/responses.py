# SPDX-License-Identifier: GPL-3.0-only
"""Parse the stateless part of `POST /v1/responses`. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta
from msgspec.structs import replace

from modeld.dialects.common.body import MAX_INT32
from modeld.dialects.common.schema import schema_constraint
from modeld.dialects.common.tool_calls import tool_of
from modeld.dialects.openai.chat import (
    ANY_OBJECT,
    ObjectResponse,
    Schema,
    TextResponse,
    message_of,
    raw_schema,
    tools_of,
)
from modeld.dialects.openai.common import (
    AnyJson,
    SamplingKeys,
    TokenDetails,
    order_of,
    read,
    refuse,
    sampling_of,
)
from modeld.dialects.openai.content_parts import InputPart, text_of
from modeld.domain.request import (
    AS_MANY_AS_FIT,
    Constraint,
    ConstraintKind,
    GenerateRequest,
    Message,
    Order,
    Sampling,
    Tool,
    ToolCall,
)
from modeld.domain.request_events import Usage
from modeld.errors import InvalidRequest


class ResponseItem(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A turn, a call, or what came of a call. What a response has in `output` is taken as it is."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None
    id: str | None = None
    status: str | None = None


class ResponseTool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A function that may be called."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: Schema = UNSET
    strict: bool | None = None


class ResponseNamed(msgspec.Struct, forbid_unknown_fields=True):
    """This function must be called."""

    type: Literal["function"]
    name: str


class ResponseSchema(
    msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema", kw_only=True
):
    """JSON that satisfies a schema."""

    name: str = ""
    description: str | None = None
    schema: Schema = UNSET
    strict: bool | None = None


class ResponseText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How the text is written."""

    format: TextResponse | ObjectResponse | ResponseSchema | None = None
    verbosity: None = None


class ResponseStreamOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How a stream is written."""

    include_obfuscation: bool | None = None


class ResponsesBody(SamplingKeys, kw_only=True):
    """What `POST /v1/responses` takes."""

    input: Annotated[
        str | list[ResponseItem], Meta(description="A user's words, or turns, calls and results")
    ]
    instructions: Annotated[str | None, Meta(description="Told first, as a system message")] = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=MAX_INT32)] | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseNamed | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    metadata: Annotated[dict[str, str] | None, Meta(description="Comes back with the response")] = None
    stream_options: ResponseStreamOptions | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: Annotated[bool | None, Meta(description="Nothing is stored; true is refused")] = None
    background: Annotated[bool | None, Meta(description="true is refused")] = None
    include: Annotated[list[str] | None, Meta(description="Only empty")] = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    prompt_cache_retention: None = None
    reasoning: None = None
    max_tool_calls: None = None
    top_logprobs: None = None


class ParsedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request: the order, and the body, parts of which come back."""

    order: Order
    wire: ResponsesBody
    stream: bool
    tools: tuple[Tool, ...]
    forced: bool
    one_call: bool


_decoder = msgspec.json.Decoder(ResponsesBody)


def parse_response(body: bytes) -> ParsedResponse:
    """Read the body of `POST /v1/responses`. Raises: InvalidRequest, InvalidGrammar."""
    wire = read(body, _decoder, '{"model": "...", "input": "Hello"}')
    for key in ("store", "background", "include"):
        refuse(wire, key, ", as nothing is stored" if key != "include" else "")
    if not wire.input:
        raise InvalidRequest("`input` is empty; give it some text")
    tools, constraint = tools_of(
        [
            tool_of(
                tool.name,
                tool.description,
                raw_schema(tool.parameters),
                f"tools[{number}]",
                strict=tool.strict,
            )
            for number, tool in enumerate(wire.tools or ())
        ],
        wire.tool_choice.name if isinstance(wire.tool_choice, ResponseNamed) else wire.tool_choice,
        _format_of(wire),
    )
    request = GenerateRequest(
        messages=_messages(wire),
        tools=tools,
        max_tokens=wire.max_output_tokens or AS_MANY_AS_FIT,
        sampling=sampling_of(wire),
        ignore_eos=bool(wire.ignore_eos),
        constraint=constraint,
    )
    return ParsedResponse(
        order=order_of(wire, wire.model, request),
        wire=wire,
        stream=bool(wire.stream),
        tools=tools,
        forced=bool(tools) and wire.tool_choice not in (None, "auto"),
        one_call=wire.parallel_tool_calls is False,
    )


def _messages(wire: ResponsesBody) -> tuple[Message, ...]:
    messages = [message_of("system", wire.instructions)] if wire.instructions else []
    if isinstance(wire.input, str):
        return (*messages, message_of("user", wire.input))
    for number, item in enumerate(wire.input):
        place = f"input[{number}]"
        match item.type:
            case "message":
                text = text_of(item.content, f"{place}.content")
                if item.role is None or text is None:
                    raise InvalidRequest(f"`{place}` lacks its `{'content' if item.role else 'role'}`")
                messages.append(message_of(item.role, text))
            case "function_call":
                if not (item.call_id and item.name):
                    raise InvalidRequest(f"`{place}` lacks its `{'name' if item.call_id else 'call_id'}`")
                call = ToolCall(id=item.call_id, name=item.name, arguments=item.arguments or "{}")
                if messages and messages[-1].role == "assistant":
                    messages[-1] = replace(messages[-1], tool_calls=(*messages[-1].tool_calls, call))
                else:
                    messages.append(message_of("assistant", "", (call,)))
            case "function_call_output":
                output = text_of(item.output, f"{place}.output")
                if not item.call_id or output is None:
                    raise InvalidRequest(f"`{place}` lacks its `{'output' if item.call_id else 'call_id'}`")
                messages.append(message_of("tool", output, call=item.call_id))
    return tuple(messages)


def _format_of(wire: ResponsesBody) -> Constraint | None:
    match None if wire.text is None else wire.text.format:
        case ResponseSchema(schema=schema, strict=strict):
            raw = raw_schema(schema)
            if raw is None:
                raise InvalidRequest("`text.format` lacks its `schema`")
            return schema_constraint(raw, "text.format.schema", strict=strict)
        case ObjectResponse():
            return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=ANY_OBJECT)
        case _:
            return None


# ----------------------------------------------------------------------
# What `/v1/responses` gives back, as it is written. Pure.

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputTextBody(msgspec.Struct, frozen=True, kw_only=True):
    """Text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[AnyJson] = []
    logprobs: list[AnyJson] = []


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """What the assistant said."""

    id: str
    status: ItemStatus = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputTextBody] = []


class CallItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """What the assistant called."""

    id: str
    status: ItemStatus = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


class ReasoningDetails(msgspec.Struct, frozen=True):
    """Tokens of thoughts; they are not set apart from the answer."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """Token counts."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why an answer is not whole: tokens, or time, ran out."""

    reason: Literal["max_output_tokens"]


class ResponseError(msgspec.Struct, frozen=True):
    """Why an answer failed."""

    code: str
    message: str


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[MessageItem | CallItem] = []
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: None = None
    service_tier: Literal["default"] = "default"
    store: bool = False
    temperature: float
    text: ResponseText
    tool_choice: Literal["none", "auto", "required"] | ResponseNamed
    tools: list[ResponseTool]
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None


def response_body(wire: ResponsesBody, answer_id: str, model: str, created: int) -> ResponseBody:
    """Return the answer to a body before there is anything in it."""
    defaults = Sampling()
    wanted = None if wire.text is None else wire.text.format
    return ResponseBody(
        id=answer_id,
        created_at=created,
        instructions=wire.instructions,
        max_output_tokens=wire.max_output_tokens,
        metadata=wire.metadata or {},
        model=model,
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        temperature=defaults.temperature if wire.temperature is None else wire.temperature,
        text=ResponseText(format=TextResponse() if wanted is None else wanted),
        tool_choice=wire.tool_choice or "auto",
        tools=wire.tools or [],
        top_p=defaults.top_p if wire.top_p is None else wire.top_p,
        user=wire.user,
    )


def response_usage(usage: Usage) -> ResponseUsage:
    """Return token counts as they are written."""
    return ResponseUsage(
        usage.prompt_tokens,
        TokenDetails(usage.cached_tokens),
        usage.completion_tokens,
        ReasoningDetails(0),
        usage.prompt_tokens + usage.completion_tokens,
    )
