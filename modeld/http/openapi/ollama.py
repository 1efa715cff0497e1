# SPDX-License-Identifier: GPL-3.0-only
"""The paths of Ollama in the OpenAPI document. Pure."""

from __future__ import annotations

from modeld.dialects import llamacpp, ollama
from modeld.http.openapi.parts import Json, operation, ref

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


# ----------------------------------------------------------------------
# The paths of llama.cpp's own server in the OpenAPI document. Pure.

LLAMA_BODIES = (
    llamacpp.LlamaCompletionBody,
    llamacpp.LlamaEmbeddingBody,
    llamacpp.LlamaModelBody,
    llamacpp.LlamaCompletion,
    llamacpp.LlamaProps,
    llamacpp.LlamaSlot,
    llamacpp.LlamaHealth,
    llamacpp.LlamaDone,
    llamacpp.LlamaError,
)
_LLAMACPP_ERROR = "LlamaError"
_MODEL: Json = {
    "name": "model",
    "in": "query",
    "description": "Id or alias; default: the default model",
    "schema": {"type": "string"},
}
_NO_SLOT: Json = {
    "name": "fail_on_no_slot",
    "in": "query",
    "description": "With any value, 503 when no slot is free",
    "schema": {"type": "string"},
}
_VECTORS: Json = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "index": {"type": "integer"},
            "embedding": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        },
        "required": ["index", "embedding"],
    },
}


def llama_paths() -> Json:
    """Return the paths of llama.cpp's server."""
    paths: Json = {
        "/health": {
            "get": operation(
                "llama.cpp: health; models that are not loaded are no illness",
                gives="LlamaHealth",
                error=_LLAMACPP_ERROR,
                statuses=(503,),
            )
        },
        "/props": {"get": _of_model("llama.cpp: what is known of a model", "LlamaProps", (404,), _MODEL)},
        "/slots": {
            "get": _of_model("llama.cpp: the slots of a model", "LlamaSlot", (404, 503), _MODEL, _NO_SLOT)
        },
    }
    paths["/slots"]["get"]["responses"]["200"]["content"]["application/json"]["schema"] = {
        "type": "array",
        "items": ref("LlamaSlot"),
    }
    paths["/completion"] = {
        "post": operation(
            "llama.cpp: text that follows a prompt",
            takes="LlamaCompletionBody",
            gives="LlamaCompletion",
            events=True,
            example={"prompt": "Building a website can be done in 10 simple steps:", "n_predict": 64},
            error=_LLAMACPP_ERROR,
            description="`/completions` is the same.",
        )
    }
    vectors = operation(
        "llama.cpp: a vector for each text",
        takes="LlamaEmbeddingBody",
        gives="LlamaDone",
        example={"content": "Hello"},
        error=_LLAMACPP_ERROR,
        description="`/embeddings` is the same.",
    )
    vectors["responses"]["200"]["content"]["application/json"]["schema"] = _VECTORS
    paths["/embedding"] = {"post": vectors}
    for path, verb in (("/models/load", "load"), ("/models/unload", "unload")):
        paths[path] = {
            "post": operation(
                f"llama.cpp: begin to {verb} a model",
                takes="LlamaModelBody",
                gives="LlamaDone",
                example={"model": "tinyllama-q4"},
                error=_LLAMACPP_ERROR,
                statuses=(400, 404, 408, 409, 413, 415, 429, 503, 507),
            )
        }
        paths[path]["post"]["responses"].setdefault("409", _conflict())
    return paths


def _of_model(summary: str, gives: str, statuses: tuple[int, ...], *parameters: Json) -> Json:
    return operation(summary, gives=gives, error=_LLAMACPP_ERROR, statuses=statuses) | {
        "parameters": list(parameters)
    }


def _conflict() -> Json:
    content: Json = {"application/json": {"schema": ref(_LLAMACPP_ERROR)}}
    return {"description": "The model is pinned, and is to be unloaded", "content": content}
