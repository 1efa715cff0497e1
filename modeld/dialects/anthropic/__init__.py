# SPDX-License-Identifier: GPL-3.0-only
"""Anthropic's Messages API: bodies in, events and bodies out. Pure.

`wire` holds what clients send, `parse` makes orders of it, `render` writes messages and streams of
them, `errors` the envelope. docs/compatibility.md says what differs from the original.
"""

from modeld.dialects.anthropic.answer import AnthropicAnswer, AnthropicCount
from modeld.dialects.anthropic.errors import AnthropicError, error_answer
from modeld.dialects.anthropic.listing import AnthropicModels, models_list, one_model
from modeld.dialects.anthropic.parse import Asked, parse_count, parse_messages
from modeld.dialects.anthropic.render import CountRenderer, MessageRenderer
from modeld.dialects.anthropic.wire import AnthropicCountBody, AnthropicMessagesBody

__all__ = [
    "AnthropicAnswer",
    "AnthropicCount",
    "AnthropicCountBody",
    "AnthropicError",
    "AnthropicMessagesBody",
    "AnthropicModels",
    "Asked",
    "CountRenderer",
    "MessageRenderer",
    "error_answer",
    "models_list",
    "one_model",
    "parse_count",
    "parse_messages",
]
