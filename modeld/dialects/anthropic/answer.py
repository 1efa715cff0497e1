# SPDX-License-Identifier: GPL-3.0-only
"""Anthropic's message as it is written. Pure."""

from __future__ import annotations

import msgspec


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
