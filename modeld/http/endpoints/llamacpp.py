# SPDX-License-Identifier: GPL-3.0-only
"""Serve the paths of llama.cpp's own server that have no native counterpart."""

from __future__ import annotations

from quart import Response

from modeld.dialects import llamacpp
from modeld.dialects.common.streaming import SSE_TYPE
from modeld.domain.catalog import resolve_model
from modeld.domain.model import ModelSpec
from modeld.errors import ModelNotFound
from modeld.http.context import AppContext, HttpRequest
from modeld.http.endpoint import (
    ADMIN,
    EMBEDDING,
    GENERATING,
    INFER,
    OPEN,
    READ,
    READING,
    SSE_EVENT,
    Body,
    Endpoint,
    Parameter,
    Success,
)
from modeld.http.errors import LLAMACPP
from modeld.http.generation import gather, generate
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.replies import json_reply
from modeld.http.streaming import read_json
from modeld.quotas.client import visible_models
from modeld.runtime.ticket import Ticket


def health(context: AppContext, _request: HttpRequest) -> Response:
    """Answer 200, or 503 with what is wrong. A model that is not loaded is not a fault."""
    reason = context.backend.health()
    if reason is not None:
        return json_reply(llamacpp.unavailable(reason), 503)
    return json_reply(llamacpp.LlamaHealth())


async def props(context: AppContext, request: HttpRequest) -> Response:
    """Describe one model."""
    spec = await _spec(context, request, _model_in_query(request))
    template = await context.backend.chat_template(spec)
    return json_reply(llamacpp.props(spec, context.backend.status(), template))


async def slots(context: AppContext, request: HttpRequest) -> Response:
    """List the slots of one model."""
    spec = await _spec(context, request, _model_in_query(request))
    found = llamacpp.slots(spec, context.backend.status())
    if request.args.get("fail_on_no_slot") and all(slot.is_processing for slot in found):
        return json_reply(llamacpp.unavailable(f"none of {len(found)} slots is free"), 503)
    return json_reply(found)


async def completion(context: AppContext, request: HttpRequest) -> Response:
    """Return text that follows a prompt."""
    asked = llamacpp.parse_completion(await read_json(request))

    def renderer_for(ticket: Ticket) -> llamacpp.LlamaCompletionRenderer:
        return llamacpp.LlamaCompletionRenderer(asked.request, model=ticket.model.id)

    stream = SSE_TYPE if asked.stream else None
    return await generate(context, request, asked.order, renderer_for, stream=stream)


async def embedding(context: AppContext, request: HttpRequest) -> Response:
    """Return a vector for each text."""
    order = llamacpp.parse_embedding(await read_json(request))
    return await gather(context, request, order, lambda _: llamacpp.LlamaEmbeddingRenderer())


async def load(context: AppContext, request: HttpRequest) -> Response:
    """Begin to load a model; `GET /operations` shows its progress."""
    name = llamacpp.parse_model(await read_json(request))
    spec = await _spec(context, request, name)
    context.backend.control.load(spec.id, key=request.client.name)
    return json_reply(llamacpp.LlamaDone())


async def unload(context: AppContext, request: HttpRequest) -> Response:
    """Begin to unload a model: its streams may end."""
    name = llamacpp.parse_model(await read_json(request))
    spec = await _spec(context, request, name)
    context.backend.control.unload(spec.id, key=request.client.name)
    return json_reply(llamacpp.LlamaDone())


def _model_in_query(request: HttpRequest) -> str | None:
    return request.args.get("model") or None


async def _spec(context: AppContext, request: HttpRequest, name: str | None) -> ModelSpec:
    """Return the model of a name; look for new files if it is not known."""
    try:
        return resolve_model(visible_models(context.backend.catalog, request.client), name)
    except ModelNotFound:
        await context.backend.refresh_catalog(CATALOG_MAX_AGE_S)
        return resolve_model(visible_models(context.backend.catalog, request.client), name)


_MODEL = Parameter(name="model", meaning="Id or alias; default: the default model")
_NO_FREE_SLOT = Parameter(name="fail_on_no_slot", meaning="With any value, 503 when no slot is free")
_VECTORS: dict[str, object] = {
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
_CHANGING = READING | {
    409: "The model is pinned, and is to be unloaded",
    429: "Too many operations run",
    503: "The daemon is shutting down, or the model failed and is tried again later",
    507: EMBEDDING[507],
}
_MODEL_BODY = Body(type=llamacpp.LlamaModelBody, examples={"plain": {"model": "tinyllama-q4"}})

ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/health",
        view=health,
        scopes=OPEN,
        errors=LLAMACPP,
        summary="llama.cpp: health; a model that is not loaded is not a fault",
        answers=(Success(type=llamacpp.LlamaHealth),),
        refusals={503: "The scheduler makes no progress"},
        any_host=True,
    ),
    Endpoint(
        method="GET",
        path="/props",
        view=props,
        scopes=INFER,
        errors=LLAMACPP,
        summary="llama.cpp: what is known of a model",
        parameters=(_MODEL,),
        answers=(Success(type=llamacpp.LlamaProps),),
        refusals={404: READING[404]},
    ),
    Endpoint(
        method="GET",
        path="/slots",
        view=slots,
        scopes=READ,
        errors=LLAMACPP,
        summary="llama.cpp: the slots of a model",
        parameters=(_MODEL, _NO_FREE_SLOT),
        answers=(Success(type=list[llamacpp.LlamaSlot]),),
        refusals={404: READING[404], 503: "No slot is free, and `fail_on_no_slot` is set"},
    ),
    Endpoint(
        method="POST",
        path="/completion",
        also=("/completions",),
        view=completion,
        scopes=INFER,
        errors=LLAMACPP,
        summary="llama.cpp: text that follows a prompt",
        body=Body(
            type=llamacpp.LlamaCompletionBody,
            examples={
                "plain": {"prompt": "Building a website can be done in 10 simple steps:", "n_predict": 64}
            },
        ),
        answers=(Success(type=llamacpp.LlamaCompletion), Success(type=SSE_EVENT, media_type=SSE_TYPE)),
        refusals=GENERATING,
    ),
    Endpoint(
        method="POST",
        path="/embedding",
        also=("/embeddings",),
        view=embedding,
        scopes=INFER,
        errors=LLAMACPP,
        summary="llama.cpp: a vector for each text",
        body=Body(type=llamacpp.LlamaEmbeddingBody, examples={"plain": {"content": "Hello"}}),
        answers=(Success(type=_VECTORS),),
        refusals=EMBEDDING,
    ),
    Endpoint(
        method="POST",
        path="/models/load",
        view=load,
        scopes=ADMIN,
        errors=LLAMACPP,
        summary="llama.cpp: begin to load a model",
        body=_MODEL_BODY,
        answers=(Success(type=llamacpp.LlamaDone),),
        refusals=_CHANGING,
    ),
    Endpoint(
        method="POST",
        path="/models/unload",
        view=unload,
        scopes=ADMIN,
        errors=LLAMACPP,
        summary="llama.cpp: begin to unload a model",
        body=_MODEL_BODY,
        answers=(Success(type=llamacpp.LlamaDone),),
        refusals=_CHANGING,
    ),
)
