# SPDX-License-Identifier: GPL-3.0-only
"""Bodies and answers of Anthropic's Messages API: keys, types, ranges.

Source: the Messages API, version 2023-06-01, and the types of the Python package `anthropic` 2.12. Null means
the default. What is known and cannot be served has a type here, so that its refusal can say more than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from modeld.dialects.common.streaming import json_bytes
from modeld.errors import DoesNotFit, InvalidGrammar, ModelNotFound, Problem, QueueFull, WaitedTooLong

_Json = msgspec.Raw | UnsetType
_schema = Meta(extra_json_schema={"type": "object"})


class CacheControl(msgspec.Struct, kw_only=True):
    """Accepted without effect: beginnings that repeat are cached anyway."""

    type: Literal["ephemeral"]
    ttl: str | None = None


class _Block(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    cache_control: CacheControl | None = None


class TextBlock(_Block, tag="text", kw_only=True):
    """Text."""

    text: str
    citations: Annotated[list[msgspec.Raw] | None, Meta(description="Left out of the prompt")] = None


class ImageBlock(_Block, tag="image", kw_only=True):
    """Refused: there is no vision."""

    source: _Json = UNSET


class DocumentBlock(_Block, tag="document", kw_only=True):
    """Refused: files are not read."""

    source: _Json = UNSET
    title: str | None = None
    context: str | None = None
    citations: _Json = UNSET


class ThinkingBlock(_Block, tag="thinking", kw_only=True):
    """Thoughts of an earlier answer: left out of the prompt."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(_Block, tag="redacted_thinking", kw_only=True):
    """Thoughts of an earlier answer that only Anthropic can read: left out of the prompt."""

    data: str


class ToolUseBlock(_Block, tag="tool_use", kw_only=True):
    """A call that the assistant made."""

    id: Annotated[str, Meta(min_length=1)]
    name: Annotated[str, Meta(min_length=1)]
    input: Annotated[msgspec.Raw, _schema]
    caller: Annotated[_Json, Meta(description="No effect")] = UNSET


ResultPart = TextBlock | ImageBlock | DocumentBlock


class ToolResultBlock(_Block, tag="tool_result", kw_only=True):
    """What a call gave."""

    tool_use_id: Annotated[str, Meta(min_length=1)]
    content: str | list[ResultPart] | None = None
    is_error: bool | None = None


Block = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
)


class AnthropicMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class AnthropicTool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    input_schema: Annotated[_Json, Meta(extra_json_schema={"type": "object"})] = UNSET
    type: Annotated[str | None, Meta(description="custom; tools of Anthropic's servers are not served")] = (
        None
    )
    cache_control: CacheControl | None = None
    strict: Annotated[bool | None, Meta(description="true: a schema that cannot be compiled is refused")] = (
        None
    )
    eager_input_streaming: Annotated[bool | None, Meta(description="No effect: they always are")] = None
    input_examples: Annotated[list[msgspec.Raw] | None, Meta(description="Left out of the prompt")] = None


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whether functions may, must or must not be called; `tool` names one that must."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: Annotated[
        bool | None, Meta(description="Tell no more than the first call")
    ] = None


class Thinking(msgspec.Struct, kw_only=True):
    """Only `disabled`: thoughts are not set apart."""

    type: str


class Metadata(msgspec.Struct, kw_only=True):
    """Accepted without effect."""

    user_id: str | None = None


class JsonFormat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A schema that the text must satisfy."""

    type: Literal["json_schema"]
    schema: Annotated[msgspec.Raw, _schema]


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How the answer is to look."""

    format: JsonFormat | None = None
    effort: Annotated[str | None, Meta(description="Refused: there is no such thing here")] = None


class _Prompt(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, description="Id or alias")]
    messages: Annotated[list[AnthropicMessage], Meta(min_length=1)]
    system: Annotated[str | list[TextBlock] | None, Meta(description="Comes before the messages")] = None
    tools: Annotated[list[AnthropicTool] | None, Meta(description="Functions that may be called")] = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    speed: Annotated[Literal["standard"] | None, Meta(description="No effect")] = None


class AnthropicCountBody(_Prompt, kw_only=True):
    """What `POST /v1/messages/count_tokens` takes."""


class AnthropicMessagesBody(_Prompt, kw_only=True):
    """What `POST /v1/messages` takes."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1, description="Most tokens of the answer")]
    stream: bool | None = None
    stop_sequences: Annotated[
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=1000)]], Meta(max_length=64)] | None,
        Meta(description="The text ends before the first of these"),
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Default 1; 0 is greedy")
    ] = None
    top_p: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Default 1: off")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=0, le=2**31 - 1)] | None, Meta(description="Default: all tokens")
    ] = None
    metadata: Metadata | None = None
    service_tier: Annotated[Literal["auto", "standard_only"] | None, Meta(description="No effect")] = None


# ----------------------------------------------------------------------
# Anthropic's message as it is written. Pure.


class AnthropicUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts; those of the prompt that came from the prefix cache are not among `input_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicText(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """Text of the answer."""

    text: str


class AnthropicToolUse(msgspec.Struct, frozen=True, tag="tool_use", tag_field="type"):
    """A call of a function."""

    id: str
    name: str
    input: msgspec.Raw


class AnthropicAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer; in `message_start` without content and reason."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[AnthropicText | AnthropicToolUse]
    stop_reason: str | None
    stop_sequence: str | None
    usage: AnthropicUsage


class AnthropicCount(msgspec.Struct, frozen=True):
    """How many tokens the prompt has."""

    input_tokens: int


# ----------------------------------------------------------------------
# Errors in Anthropic's envelope, with its types and statuses. Pure.
#
# Source: the page "Errors" of the Messages API.

OVERLOADED = 529
"""Anthropic's status for a server that has too much to do; clients try again, as after a 503."""
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
_STATUSES: Mapping[str, int] = {
    InvalidGrammar.kind: 400,
    DoesNotFit.kind: 400,
    QueueFull.kind: OVERLOADED,
    WaitedTooLong.kind: OVERLOADED,
}
"""Where another status than modeld's own means the same to clients of Anthropic: 429 is about their own
limits, and whatever is 500 and more they try again, which is of no use where a model can never fit."""


class AnthropicErrorDetail(msgspec.Struct, frozen=True):
    """What kind of error, in Anthropic's words, and a sentence."""

    type: str
    message: str


class AnthropicError(msgspec.Struct, frozen=True, kw_only=True):
    """Every refusal, and the last event of a stream that broke."""

    type: str = "error"
    error: AnthropicErrorDetail
    request_id: str


def error_of(problem: Problem, request_id: str) -> tuple[int, AnthropicError]:
    """Return the status of a problem, and its envelope."""
    status = _STATUSES.get(problem.kind, OVERLOADED if problem.status == 503 else problem.status)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    message = problem.message
    if problem.kind == ModelNotFound.kind:
        message = message.replace("GET /models", "GET /v1/models")
    return status, AnthropicError(error=AnthropicErrorDetail(kind, message), request_id=request_id)


def error_answer(problem: Problem, request_id: str) -> tuple[int, bytes]:
    """Return status and body of a refusal."""
    status, error = error_of(problem, request_id)
    return status, json_bytes(error)
