# SPDX-License-Identifier: GPL-3.0-only
"""The OpenAPI 3.1 document, made from the very values that parse and render. Pure."""

from __future__ import annotations

import msgspec

from modeld import __version__
from modeld.dialects.common.streaming import NDJSON_TYPE
from modeld.dialects.native import (
    Answer,
    ContentBody,
    DetokenizeBody,
    EmbedAnswer,
    EmbedBody,
    ErrorBody,
    InferBody,
    LoadingLine,
    ModelsBody,
    PromptBody,
    QueuedLine,
    TemplateBody,
    TokenizeBody,
    TokenLine,
    TokensBody,
)
from modeld.domain.daemon_events import FleetEvent
from modeld.domain.status import DaemonStatus
from modeld.http.openapi.control import CONTROL_BODIES, control_paths, events_operation
from modeld.http.openapi.ollama import LLAMA_BODIES, OLLAMA_BODIES, llama_paths, ollama_paths
from modeld.http.openapi.openai import ANTHROPIC_BODIES, OPENAI_BODIES, anthropic_paths, openai_paths
from modeld.http.openapi.parts import REFUSALS, SCHEMAS, SECURITY_SCHEMES, Json, ref, refusal, with_access
from modeld.quotas.usage import KeysBody, UsageReport

_BODIES = (
    InferBody,
    Answer,
    TokenLine,
    QueuedLine,
    LoadingLine,
    EmbedBody,
    EmbedAnswer,
    TokenizeBody,
    TokensBody,
    DetokenizeBody,
    ContentBody,
    TemplateBody,
    PromptBody,
    ErrorBody,
    ModelsBody,
    DaemonStatus,
    UsageReport,
    KeysBody,
    *CONTROL_BODIES,
    *OLLAMA_BODIES,
    *OPENAI_BODIES,
    *ANTHROPIC_BODIES,
    *LLAMA_BODIES,
    FleetEvent,
)

_LAST_LINE: Json = {
    "done": True,
    "content": "The capital of France is Paris.",
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13, "cached_tokens": 0},
    "stats": {"duration_ms": 231, "queue_ms": 0, "load_ms": 0, "ttft_ms": 70, "tokens_per_second": 43.48},
    "model": "tinyllama-q4.gguf",
    "id": "5f1d2b9a0c3e4d77",
}


def openapi_document() -> Json:
    """Return the document."""
    _, schemas = msgspec.json.schema_components(_BODIES, ref_template=SCHEMAS + "{name}")
    return with_access(_document(dict(schemas)))


def _document(schemas: Json) -> Json:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "modeld",
            "version": __version__,
            "summary": "Many llama.cpp models from one machine, inside a memory budget",
            "description": _ABOUT,
            "license": {"name": "GPL-3.0-only", "identifier": "GPL-3.0-only"},
        },
        "paths": {
            "/infer": {"post": _infer()},
            "/embed": {"post": _embed()},
            "/tokenize": {
                "post": _post("Text to tokens", "TokenizeBody", "TokensBody", {"content": "Hello"})
            },
            "/detokenize": {
                "post": _post("Tokens to text", "DetokenizeBody", "ContentBody", {"tokens": [19556]})
            },
            "/apply-template": {
                "post": _post(
                    "Messages to the prompt that they become",
                    "TemplateBody",
                    "PromptBody",
                    {"messages": [{"role": "user", "content": "Hello"}]},
                )
            },
            "/models": {"get": _get("List the models", "ModelsBody")},
            **control_paths(),
            "/status": {"get": _get("Everything the scheduler knows", "DaemonStatus")},
            "/usage": {
                "get": _get(
                    "What keys have used: all of them, or to others than watchers their own", "UsageReport"
                )
            },
            "/keys": {"get": _get("The keys in force and their terms, without secrets", "KeysBody")},
            "/events": {"get": events_operation()},
            "/healthz": {"get": _text("Health: 200 `ok`, or 503 with the reason", "ok", (503,))},
            "/readyz": {
                "get": _text("Readiness: 200 `ready`, or 503 `loading` or `draining`", "ready", (503,))
            },
            "/metrics": {"get": _text("Metrics for Prometheus; wakes no model", None, ())},
            "/openapi.json": {"get": _get("This document", None)},
            "/docs": {"get": _page()},
            **ollama_paths(),
            **openai_paths(),
            **anthropic_paths(),
            **llama_paths(),
        },
        "components": {"schemas": schemas, "headers": _HEADERS, "securitySchemes": SECURITY_SCHEMES},
    }


_ABOUT = (
    "Every answer carries `X-Request-ID` (yours, if it is sane, else a new one) and "
    "`X-Content-Type-Options: nosniff`. JSON is compressed when asked for; streams are not. "
    "HEAD works where GET does. Leaving (close, reset, half-close) ends a request at once, "
    "also while it waits. Durations are written `30s`, `1m30s`, `500ms`; `*_mb` is MiB."
)

_HEADERS: Json = {
    "X-Request-ID": {"description": "The request's id, as in the log", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds until it is worth trying again", "schema": {"type": "integer"}},
}


def _infer() -> Json:
    lines = [ref(name) for name in ("TokenLine", "QueuedLine", "LoadingLine", "Answer")]
    return {
        "summary": "Generate text",
        "description": (
            "Answers with one JSON object a line. The last line, and only that one, has `done: true`; "
            "with `stream: false` it is the whole body. The status waits for the first token or the first "
            "failure, unless `events` is true; a failure after that is told in the last line, with `error` "
            "and `code` in it. A stream that is silent for 15 s carries an empty line."
        ),
        "parameters": [
            {
                "name": "log",
                "in": "query",
                "description": "Log level for this request: `info` logs its start and end, `debug` each line",
                "schema": {"enum": ["off", "error", "info", "debug", "1"]},
            },
            {
                "name": "X-Log-Level",
                "in": "header",
                "description": "The same, as a header",
                "schema": {"type": "string"},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": ref("InferBody"),
                    "examples": {
                        "prompt": {"value": {"prompt": "The capital of France is", "max_tokens": 16}},
                        "chat": {
                            "value": {
                                "model": "tinyllama-q4",
                                "messages": [{"role": "user", "content": "Write a haiku about memory."}],
                                "temperature": 0.7,
                                "seed": 42,
                                "stop": ["\n\n"],
                                "timeout": "30s",
                            }
                        },
                        "json": {
                            "value": {
                                "prompt": "Name a colour.",
                                "stream": False,
                                "json_schema": {
                                    "type": "object",
                                    "properties": {"colour": {"type": "string"}},
                                },
                            }
                        },
                    },
                }
            },
        },
        "responses": {
            "200": {
                "description": "The text",
                "content": {
                    NDJSON_TYPE: {
                        "schema": {"oneOf": lines},
                        "example": (
                            '{"token":"The","done":false}\n{"done":true,"content":"The","finish_reason":'
                            '"length","usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6,'
                            '"cached_tokens":0},"stats":{"duration_ms":81,"queue_ms":0,"load_ms":0,'
                            '"ttft_ms":70,"tokens_per_second":0.0},"model":"tinyllama-q4.gguf","id":"5f1d2b"}\n'
                        ),
                    },
                    "application/json": {"schema": ref("Answer"), "example": _LAST_LINE},
                },
            },
            **{str(status): refusal(status, text) for status, text in REFUSALS.items()},
        },
    }


def _embed() -> Json:
    found = _post("Make embeddings", "EmbedBody", "EmbedAnswer", {"input": ["Hello", "world"]})
    return found | {
        "description": (
            "One vector for each input, in their order. Served like `/infer`: it waits for a slot; streams "
            "of the model run beside it. Any model that generates text can embed, too."
        )
    }


def _post(summary: str, takes: str, gives: str, example: Json) -> Json:
    content: Json = {"schema": ref(takes), "examples": {"plain": {"value": example}}}
    return {
        "summary": summary,
        "description": "Loads the model if it is not loaded; needs no slot, so it does not wait for others.",
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {
            "200": {"description": summary, "content": {"application/json": {"schema": ref(gives)}}},
            **{str(status): refusal(status, text) for status, text in REFUSALS.items() if status != 422},
        },
    }


def _get(summary: str, schema: str | None) -> Json:
    content: Json = {"schema": {"type": "object"} if schema is None else ref(schema)}
    return {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {"application/json": content}}},
    }


def _text(summary: str, example: str | None, others: tuple[int, ...]) -> Json:
    content: Json = {"schema": {"type": "string"}}
    if example is not None:
        content["example"] = example
    answer: Json = {"description": summary, "content": {"text/plain": content}}
    return {
        "summary": summary,
        "responses": {str(status): answer for status in (200, *others)},
    }


def _page() -> Json:
    content = {"text/html": {"schema": {"type": "string"}}}
    return {
        "summary": "This document as a page that works without internet",
        "responses": {"200": {"description": "The page", "content": content}},
    }
