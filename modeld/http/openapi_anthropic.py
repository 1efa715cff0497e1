# SPDX-License-Identifier: GPL-3.0-only
"""The paths of Anthropic's Messages API in the OpenAPI document. Pure."""

from __future__ import annotations

from modeld.dialects import anthropic
from modeld.dialects.anthropic.errors import OVERLOADED
from modeld.http.openapi_parts import Json, operation, ref

ANTHROPIC_BODIES = (
    anthropic.AnthropicMessagesBody,
    anthropic.AnthropicCountBody,
    anthropic.AnthropicAnswer,
    anthropic.AnthropicCount,
    anthropic.AnthropicError,
)
_ERROR = "AnthropicError"
_STATUSES = (400, 404, 408, 413, 415, 429, 500, 504)
_EXAMPLE: Json = {"model": "tinyllama-q4", "messages": [{"role": "user", "content": "Hello"}]}


def anthropic_paths() -> Json:
    """Return the paths of Anthropic."""
    return {
        "/v1/messages": {
            "post": _with_overload(
                operation(
                    "Anthropic: the next message of a conversation",
                    takes="AnthropicMessagesBody",
                    gives="AnthropicAnswer",
                    events=True,
                    example={**_EXAMPLE, "max_tokens": 100},
                    error=_ERROR,
                    statuses=_STATUSES,
                    description=(
                        "With `stream: true` as server-sent events: `message_start`, then for each block "
                        "`content_block_start`, `content_block_delta` and `content_block_stop`, then "
                        "`message_delta` and `message_stop`; `ping` in between, and `error` if it breaks."
                    ),
                )
            )
        },
        "/v1/messages/count_tokens": {
            "post": _with_overload(
                operation(
                    "Anthropic: how many tokens a message would have",
                    takes="AnthropicCountBody",
                    gives="AnthropicCount",
                    example=_EXAMPLE,
                    error=_ERROR,
                    statuses=_STATUSES,
                )
            )
        },
    }


def _with_overload(found: Json) -> Json:
    """Add Anthropic's own status."""
    found["responses"][str(OVERLOADED)] = {
        "description": (
            "The queue is full, the request waited too long, the daemon is shutting down, or the model is "
            "tried again later: what are 429 and 503 elsewhere"
        ),
        "content": {"application/json": {"schema": ref(_ERROR)}},
        "headers": {"Retry-After": {"$ref": "#/components/headers/Retry-After"}},
    }
    return found
