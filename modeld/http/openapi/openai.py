# SPDX-License-Identifier: GPL-3.0-only
"""OpenAI's paths in the OpenAPI document. Pure."""

from __future__ import annotations

from modeld.dialects import anthropic, openai
from modeld.dialects.anthropic.common import OVERLOADED
from modeld.http.openapi.parts import MODEL_IN_PATH, SSE_EVENT, Json, operation, ref

OPENAI_BODIES = (
    openai.ChatBody,
    openai.ChatAnswer,
    openai.CompletionBody,
    openai.CompletionAnswer,
    openai.EmbeddingsBody,
    openai.EmbeddingsAnswer,
    openai.ResponsesBody,
    openai.ResponseBody,
    openai.OpenAIModel,
    openai.OpenAIModels,
    openai.OpenAIError,
)
_ERROR = "OpenAIError"
_STREAM: Json = {
    "schema": SSE_EVENT,
    "example": 'data: {"id":"chatcmpl-5f1d",...}\n\ndata: [DONE]\n\n',
}


def openai_paths() -> Json:
    """Return OpenAI's paths."""
    return {
        "/v1/models": {
            "get": operation("OpenAI: list the models", gives="OpenAIModels", error=_ERROR, statuses=(404,))
        },
        "/v1/models/{model}": {
            "get": operation("OpenAI: one model", gives="OpenAIModel", error=_ERROR, statuses=(404,))
            | {"parameters": [MODEL_IN_PATH]}
        },
        "/v1/chat/completions": {
            "post": _streaming(
                operation(
                    "OpenAI: answer a conversation",
                    takes="ChatBody",
                    gives="ChatAnswer",
                    example={"model": "tinyllama-q4", "messages": [{"role": "user", "content": "Hello"}]},
                    error=_ERROR,
                    description=(
                        "With `stream`, chunks as server-sent events, `[DONE]` the last of them. An error "
                        "after the first chunk is an event with `error` in it. What differs: "
                        "docs/compatibility.md."
                    ),
                )
            )
        },
        "/v1/completions": {
            "post": _streaming(
                operation(
                    "OpenAI: continue texts",
                    takes="CompletionBody",
                    gives="CompletionAnswer",
                    example={"model": "tinyllama-q4", "prompt": "The capital of France is"},
                    error=_ERROR,
                )
            )
        },
        "/v1/responses": {
            "post": _streaming(
                operation(
                    "OpenAI: answer, in the newer form",
                    takes="ResponsesBody",
                    gives="ResponseBody",
                    example={"model": "tinyllama-q4", "input": "Hello"},
                    error=_ERROR,
                    description="Stateless: nothing is stored, and no earlier response can be named.",
                )
            )
        },
        "/v1/embeddings": {
            "post": operation(
                "OpenAI: a vector for each input",
                takes="EmbeddingsBody",
                gives="EmbeddingsAnswer",
                example={"model": "tinyllama-q4", "input": ["Hello", "world"]},
                error=_ERROR,
            )
        },
    }


def _streaming(found: Json) -> Json:
    found["responses"]["200"]["content"][openai.SSE_TYPE] = _STREAM
    return found


# ----------------------------------------------------------------------
# The paths of Anthropic's Messages API in the OpenAPI document. Pure.

ANTHROPIC_BODIES = (
    anthropic.AnthropicMessagesBody,
    anthropic.AnthropicCountBody,
    anthropic.AnthropicAnswer,
    anthropic.AnthropicCount,
    anthropic.AnthropicError,
)
_ANTHROPIC_ERROR = "AnthropicError"
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
                    error=_ANTHROPIC_ERROR,
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
                    error=_ANTHROPIC_ERROR,
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
        "content": {"application/json": {"schema": ref(_ANTHROPIC_ERROR)}},
        "headers": {"Retry-After": {"$ref": "#/components/headers/Retry-After"}},
    }
    return found
