# SPDX-License-Identifier: GPL-3.0-only
"""Serve Ollama's API: `/api/...`, and `/`, by which its clients see whether a server is there."""

from __future__ import annotations

import time
from collections.abc import Callable

from quart import Response

from modeld.dialects import ollama
from modeld.dialects.common.streaming import NDJSON_TYPE, line
from modeld.domain.instance_state import InstanceState
from modeld.domain.model import Catalog, ModelSpec
from modeld.domain.request_events import Finished, FinishReason, Stats, Usage
from modeld.errors import ModelNotFound, NotFound
from modeld.http.context import AppContext, HttpRequest
from modeld.http.endpoint import EMBEDDING, GENERATING, INFER, OPEN, READ, READING, Body, Endpoint, Success
from modeld.http.errors import OLLAMA
from modeld.http.generation import gather, generate
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.replies import json_reply, text_reply
from modeld.http.streaming import read_json
from modeld.quotas.client import visible_models
from modeld.runtime.ticket import Ticket

_HOW_TO = "put a GGUF file into models_dir, or take it away: modeld sees that within seconds"
_GONE = frozenset({InstanceState.STOPPED, InstanceState.ERROR})


def root(_context: AppContext, _request: HttpRequest) -> Response:
    """Say that a server is here."""
    return text_reply("modeld is running; clients of Ollama find what they know, and /docs tells the rest")


def version(_context: AppContext, _request: HttpRequest) -> Response:
    """Return the version of the API, and modeld's own."""
    return json_reply(ollama.OllamaVersion())


async def tags(context: AppContext, request: HttpRequest) -> Response:
    """List the models, with files that were just added and without those that were just removed."""
    await context.backend.refresh_catalog(CATALOG_MAX_AGE_S)
    return json_reply(ollama.tags(_catalog(context, request)))


def running(context: AppContext, request: HttpRequest) -> Response:
    """List the models in memory."""
    return json_reply(ollama.running(_catalog(context, request), context.backend.status()))


async def show(context: AppContext, request: HttpRequest) -> Response:
    """Describe one model, without loading it."""
    spec = await _spec(context, request, ollama.parse_show(await _body(request)))
    return json_reply(ollama.show(spec, await context.backend.chat_template(spec)))


async def generate_text(context: AppContext, request: HttpRequest) -> Response:
    """Return text that follows a prompt."""
    return await _text(context, request, ollama.parse_generate)


async def chat(context: AppContext, request: HttpRequest) -> Response:
    """Return the next message of a conversation."""
    return await _text(context, request, ollama.parse_chat)


async def embed(context: AppContext, request: HttpRequest) -> Response:
    """Return a vector for each input."""
    return await _vectors(context, request, ollama.parse_embed)


async def embeddings(context: AppContext, request: HttpRequest) -> Response:
    """Return the vector of one prompt."""
    return await _vectors(context, request, ollama.parse_embeddings)


async def pull(context: AppContext, request: HttpRequest) -> Response:
    """Say that a model is here, which is all that clients want to know before they use it."""
    name, stream = ollama.parse_pull(await _body(request))
    try:
        await _spec(context, request, name)
    except ModelNotFound:
        raise ModelNotFound(f'no model is called "{name}", and modeld fetches none: {_HOW_TO}') from None
    done = ollama.OllamaProgress("success")
    return Response(line(done), content_type=NDJSON_TYPE) if stream else json_reply(done)


def not_served(_context: AppContext, request: HttpRequest) -> Response:
    """Refuse what would change the files."""
    raise NotFound(f"{request.path} is not served: {_HOW_TO}")


async def _text(
    context: AppContext, request: HttpRequest, parse: Callable[[bytes], ollama.ParsedOllama]
) -> Response:
    asked = parse(await _body(request))
    spec = await _spec(context, request, asked.terms.model)
    created_at = ollama.rfc3339(time.time())

    def renderer_of(spec: ModelSpec) -> ollama.OllamaTextRenderer:
        return ollama.OllamaTextRenderer(asked, spec, created_at=created_at, request_id=request.id)

    if asked.unloads and context.backend.model_states().get(spec.id, InstanceState.STOPPED) in _GONE:
        nothing = Finished(reason=FinishReason.STOP, usage=Usage(), stats=Stats())
        return json_reply(renderer_of(spec).take([nothing]))
    stream = NDJSON_TYPE if asked.stream else None
    order = ollama.order_of(asked, spec)
    return await generate(context, request, order, lambda ticket: renderer_of(ticket.model), stream=stream)


async def _vectors(
    context: AppContext, request: HttpRequest, parse: Callable[[bytes], ollama.ParsedEmbed]
) -> Response:
    asked = parse(await _body(request))
    spec = await _spec(context, request, asked.terms.model)

    def renderer_for(ticket: Ticket) -> ollama.OllamaEmbedRenderer:
        return ollama.OllamaEmbedRenderer(asked, ticket.model)

    return await gather(context, request, asked.order(spec), renderer_for)


def _catalog(context: AppContext, request: HttpRequest) -> Catalog:
    """Return the models that this client may see."""
    return visible_models(context.backend.catalog, request.client)


async def _spec(context: AppContext, request: HttpRequest, name: str | None) -> ModelSpec:
    """Return the model of a name; look for new files if it is not known."""
    spec = ollama.find(_catalog(context, request), name)
    if spec is None:
        await context.backend.refresh_catalog(CATALOG_MAX_AGE_S)
        spec = ollama.find(_catalog(context, request), name)
    if spec is None:
        called = "there are no models" if name is None else f'no model is called "{name[:200]}"'
        raise ModelNotFound(f"{called}; see GET /api/tags")
    return spec


async def _body(request: HttpRequest) -> bytes:
    """Return the body. Ollama's own examples send JSON without declaring it; no foreign web page may."""
    return await read_json(request, undeclared=request.sent(b"origin", None) is None)


_LINES = Success(type=(ollama.OllamaAnswer, ollama.OllamaError), media_type=NDJSON_TYPE)
_DEFECT = {500: GENERATING[500]}

ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/",
        view=root,
        scopes=OPEN,
        summary="Ollama: whether a server is here",
        answers=(Success(type={"type": "string"}, media_type="text/plain", meaning="A sentence"),),
    ),
    Endpoint(
        method="POST",
        path="/api/generate",
        view=generate_text,
        scopes=INFER,
        errors=OLLAMA,
        summary="Ollama: text that follows a prompt",
        description="Without a prompt the model is loaded, or with `keep_alive` 0 unloaded.",
        body=Body(
            type=ollama.OllamaGenerateBody,
            examples={"plain": {"model": "tinyllama-q4", "prompt": "Why is the sky blue?"}},
        ),
        answers=(Success(type=ollama.OllamaAnswer), _LINES),
        refusals=GENERATING,
    ),
    Endpoint(
        method="POST",
        path="/api/chat",
        view=chat,
        scopes=INFER,
        errors=OLLAMA,
        summary="Ollama: the next message of a conversation",
        body=Body(
            type=ollama.OllamaChatBody,
            examples={"plain": {"model": "tinyllama-q4", "messages": [{"role": "user", "content": "Hello"}]}},
        ),
        answers=(Success(type=ollama.OllamaAnswer), _LINES),
        refusals=GENERATING,
    ),
    Endpoint(
        method="POST",
        path="/api/embed",
        view=embed,
        scopes=INFER,
        errors=OLLAMA,
        summary="Ollama: a vector for each input",
        body=Body(
            type=ollama.OllamaEmbedBody,
            examples={"plain": {"model": "tinyllama-q4", "input": ["Hello", "world"]}},
        ),
        answers=(Success(type=ollama.OllamaEmbedAnswer),),
        refusals=EMBEDDING,
    ),
    Endpoint(
        method="POST",
        path="/api/embeddings",
        view=embeddings,
        scopes=INFER,
        errors=OLLAMA,
        summary="Ollama: the vector of a prompt",
        body=Body(
            type=ollama.OllamaEmbeddingsBody,
            examples={"plain": {"model": "tinyllama-q4", "prompt": "Hello"}},
        ),
        answers=(Success(type=ollama.OllamaEmbeddingsAnswer),),
        refusals=EMBEDDING,
    ),
    Endpoint(
        method="POST",
        path="/api/show",
        view=show,
        scopes=INFER,
        errors=OLLAMA,
        summary="Ollama: what is known of a model",
        body=Body(type=ollama.OllamaShowBody, examples={"plain": {"model": "tinyllama-q4"}}),
        answers=(Success(type=ollama.OllamaShow),),
        refusals=READING,
    ),
    Endpoint(
        method="POST",
        path="/api/pull",
        view=pull,
        scopes=INFER,
        errors=OLLAMA,
        summary="Ollama: success for a model that is here; nothing is fetched",
        body=Body(type=ollama.OllamaPullBody, examples={"plain": {"model": "tinyllama-q4"}}),
        answers=(
            Success(type=ollama.OllamaProgress),
            Success(type=ollama.OllamaProgress, media_type=NDJSON_TYPE),
        ),
        refusals=READING,
    ),
    Endpoint(
        method="GET",
        path="/api/tags",
        view=tags,
        scopes=INFER,
        errors=OLLAMA,
        summary="Ollama: list the models",
        answers=(Success(type=ollama.OllamaTags),),
        refusals=_DEFECT,
    ),
    Endpoint(
        method="GET",
        path="/api/ps",
        view=running,
        scopes=READ | INFER,
        errors=OLLAMA,
        summary="Ollama: the models in memory",
        answers=(Success(type=ollama.OllamaPs),),
        refusals=_DEFECT,
    ),
    Endpoint(
        method="GET",
        path="/api/version",
        view=version,
        scopes=OPEN,
        errors=OLLAMA,
        summary="Ollama: the version of its API",
        answers=(Success(type=ollama.OllamaVersion),),
        refusals=_DEFECT,
    ),
    *(
        Endpoint(
            method=method,
            path=path,
            view=not_served,
            scopes=INFER,
            errors=OLLAMA,
            summary="Ollama: not served",
            refusals={404: "modeld changes no model files"},
        )
        for method, path in (
            ("POST", "/api/push"),
            ("POST", "/api/create"),
            ("POST", "/api/copy"),
            ("DELETE", "/api/delete"),
        )
    ),
)
