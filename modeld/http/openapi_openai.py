# SPDX-License-Identifier: GPL-3.0-only
"""OpenAI's paths in the OpenAPI document. Pure."""

from __future__ import annotations

from modeld.dialects import openai
from modeld.http.openapi_parts import MODEL_IN_PATH, SSE_EVENT, Json, operation

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
