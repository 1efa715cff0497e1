# SPDX-License-Identifier: GPL-3.0-only
"""What clients of Anthropic's Messages API send, as it is written: keys, types, ranges.

Source: the Messages API, version 2023-06-01, and the types of the Python package `anthropic` 2.12. Null means
the default. What is known and cannot be served has a type here, so that its refusal can say more than that.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

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
