# SPDX-License-Identifier: GPL-3.0-only
"""The paths of llama.cpp's own server in the OpenAPI document. Pure."""

from __future__ import annotations

from modeld.dialects import llamacpp
from modeld.http.openapi_parts import Json, operation, ref

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
_ERROR = "LlamaError"
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
                error=_ERROR,
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
            error=_ERROR,
            description="`/completions` is the same.",
        )
    }
    vectors = operation(
        "llama.cpp: a vector for each text",
        takes="LlamaEmbeddingBody",
        gives="LlamaDone",
        example={"content": "Hello"},
        error=_ERROR,
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
                error=_ERROR,
                statuses=(400, 404, 408, 409, 413, 415, 429, 503, 507),
            )
        }
        paths[path]["post"]["responses"].setdefault("409", _conflict())
    return paths


def _of_model(summary: str, gives: str, statuses: tuple[int, ...], *parameters: Json) -> Json:
    return operation(summary, gives=gives, error=_ERROR, statuses=statuses) | {"parameters": list(parameters)}


def _conflict() -> Json:
    content: Json = {"application/json": {"schema": ref(_ERROR)}}
    return {"description": "The model is pinned, and is to be unloaded", "content": content}
