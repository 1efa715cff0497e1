# SPDX-License-Identifier: GPL-3.0-only
"""Anthropic's Messages API: parse bodies, render events. Pure.

`common` holds what clients send and read, and the error format; `messages` makes orders of bodies,
`messages_render` writes messages and streams of them.
docs/compatibility.md says what differs from the original.
"""

from modeld.dialects.anthropic.common import (
    OVERLOADED,
    AnthropicAnswer,
    AnthropicCount,
    AnthropicCountBody,
    AnthropicError,
    AnthropicMessagesBody,
    error_answer,
)
from modeld.dialects.anthropic.messages import ParsedMessages, parse_count, parse_messages
from modeld.dialects.anthropic.messages_render import CountRenderer, MessageRenderer
from modeld.dialects.anthropic.models import AnthropicModels, models_list, one_model

__all__ = [
    "OVERLOADED",
    "AnthropicAnswer",
    "AnthropicCount",
    "AnthropicCountBody",
    "AnthropicError",
    "AnthropicMessagesBody",
    "AnthropicModels",
    "CountRenderer",
    "MessageRenderer",
    "ParsedMessages",
    "error_answer",
    "models_list",
    "one_model",
    "parse_count",
    "parse_messages",
]
