# SPDX-License-Identifier: GPL-3.0-only
"""The paths of Ollama in the OpenAPI document. Pure."""

from __future__ import annotations

from modeld.dialects import ollama
from modeld.http.openapi_parts import Json, operation

OLLAMA_BODIES = (
    ollama.OllamaGenerateBody,
    ollama.OllamaChatBody,
    ollama.OllamaEmbedBody,
    ollama.OllamaEmbeddingsBody,
    ollama.OllamaShowBody,
    ollama.OllamaPullBody,
    ollama.OllamaAnswer,
    ollama.OllamaEmbedAnswer,
    ollama.OllamaEmbeddingsAnswer,
    ollama.OllamaShow,
    ollama.OllamaTags,
    ollama.OllamaPs,
    ollama.OllamaVersion,
    ollama.OllamaProgress,
    ollama.OllamaError,
)
_ERROR = "OllamaError"
_SMALL = (400, 404, 408, 413, 415)


def ollama_paths() -> Json:
    """Return the paths of Ollama."""
    return {
        "/": {
            "get": {
                "summary": "Ollama: somebody is there",
                "responses": {
                    "200": {
                        "description": "A sentence",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    }
                },
            }
        },
        "/api/generate": {
            "post": operation(
                "Ollama: text that follows a prompt",
                takes="OllamaGenerateBody",
                gives="OllamaAnswer",
                lines=("OllamaAnswer", "OllamaError"),
                example={"model": "tinyllama-q4", "prompt": "Why is the sky blue?"},
                error=_ERROR,
                description="Without a prompt the model is loaded, or with `keep_alive` 0 unloaded.",
            )
        },
        "/api/chat": {
            "post": operation(
                "Ollama: the next message of a conversation",
                takes="OllamaChatBody",
                gives="OllamaAnswer",
                lines=("OllamaAnswer", "OllamaError"),
                example={"model": "tinyllama-q4", "messages": [{"role": "user", "content": "Hello"}]},
                error=_ERROR,
            )
        },
        "/api/embed": {
            "post": operation(
                "Ollama: a vector for each input",
                takes="OllamaEmbedBody",
                gives="OllamaEmbedAnswer",
                example={"model": "tinyllama-q4", "input": ["Hello", "world"]},
                error=_ERROR,
            )
        },
        "/api/embeddings": {
            "post": operation(
                "Ollama: the vector of a prompt",
                takes="OllamaEmbeddingsBody",
                gives="OllamaEmbeddingsAnswer",
                example={"model": "tinyllama-q4", "prompt": "Hello"},
                error=_ERROR,
            )
        },
        "/api/show": {
            "post": operation(
                "Ollama: what is known of a model",
                takes="OllamaShowBody",
                gives="OllamaShow",
                example={"model": "tinyllama-q4"},
                error=_ERROR,
                statuses=_SMALL,
            )
        },
        "/api/pull": {
            "post": operation(
                "Ollama: success for a model that is here; nothing is fetched",
                takes="OllamaPullBody",
                gives="OllamaProgress",
                lines=("OllamaProgress",),
                example={"model": "tinyllama-q4"},
                error=_ERROR,
                statuses=_SMALL,
            )
        },
        "/api/tags": {
            "get": operation("Ollama: list the models", gives="OllamaTags", error=_ERROR, statuses=(500,))
        },
        "/api/ps": {
            "get": operation("Ollama: the models in memory", gives="OllamaPs", error=_ERROR, statuses=(500,))
        },
        "/api/version": {
            "get": operation(
                "Ollama: the version of its API", gives="OllamaVersion", error=_ERROR, statuses=(500,)
            )
        },
        "/api/push": {"post": _not_served()},
        "/api/create": {"post": _not_served()},
        "/api/copy": {"post": _not_served()},
        "/api/delete": {"delete": _not_served()},
    }


def _not_served() -> Json:
    return operation("Not served", error=_ERROR, statuses=(404,))
