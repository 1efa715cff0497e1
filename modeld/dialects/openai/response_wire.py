# SPDX-License-Identifier: GPL-3.0-only
"""What `/v1/responses` gives back, as it is written. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from modeld.core.events import Usage
from modeld.core.request import Sampling
from modeld.dialects.openai.chat import TextResponse
from modeld.dialects.openai.responses import ResponseNamed, ResponsesBody, ResponseText, ResponseTool
from modeld.dialects.openai.wire import AnyJson, TokenDetails

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
