# SPDX-License-Identifier: GPL-3.0-only
"""Serve OpenAI's API: models, chats, completions, responses and embeddings, all below `/v1/`."""

from __future__ import annotations

import time

from quart import Response

from modeld.dialects import anthropic, openai
from modeld.domain.model import ModelSpec
from modeld.errors import ModelNotFound
from modeld.http.context import AppContext, HttpRequest
from modeld.http.endpoint import (
    EMBEDDING,
    GENERATING,
    INFER,
    MODEL_IN_PATH,
    SSE_EVENT,
    Body,
    Endpoint,
    Success,
)
from modeld.http.errors import OPENAI
from modeld.http.generation import gather, generate, generate_choices
from modeld.http.limits import CATALOG_MAX_AGE_S
from modeld.http.replies import json_reply
from modeld.http.streaming import read_json
from modeld.quotas.client import visible_models
from modeld.runtime.ticket import Ticket


async def list_models(context: AppContext, request: HttpRequest) -> Response:
    """List the models, with files that were just added and without those that were just removed."""
    await context.backend.refresh_catalog(CATALOG_MAX_AGE_S)
    catalog = visible_models(context.backend.catalog, request.client)
    return json_reply((anthropic if _is_anthropics(request) else openai).models_list(catalog))


async def get_model(context: AppContext, request: HttpRequest, model: str) -> Response:
    """Describe one model, without loading it."""
    describe = (anthropic if _is_anthropics(request) else openai).one_model
    try:
        return json_reply(describe(visible_models(context.backend.catalog, request.client), model))
    except ModelNotFound:
        await context.backend.refresh_catalog(CATALOG_MAX_AGE_S)
        return json_reply(describe(visible_models(context.backend.catalog, request.client), model))


async def chat(context: AppContext, request: HttpRequest) -> Response:
    """Answer a conversation."""
    asked = openai.parse_chat(await read_json(request))
    created = int(time.time())

    def renderer_for(model: ModelSpec) -> openai.ChatRenderer:
        return openai.ChatRenderer(asked, request_id=request.id, model=model.id, created=created)

    return await generate_choices(context, request, asked, renderer_for)


async def complete(context: AppContext, request: HttpRequest) -> Response:
    """Continue texts."""
    asked = openai.parse_completion(await read_json(request))
    created = int(time.time())

    def renderer_for(model: ModelSpec) -> openai.OpenAICompletionRenderer:
        return openai.OpenAICompletionRenderer(asked, request_id=request.id, model=model.id, created=created)

    return await generate_choices(context, request, asked, renderer_for)


async def respond(context: AppContext, request: HttpRequest) -> Response:
    """Answer in the newer form; nothing is kept."""
    asked = openai.parse_response(await read_json(request))
    created = int(time.time())

    def renderer_for(ticket: Ticket) -> openai.ResponseRenderer:
        return openai.ResponseRenderer(asked, request_id=request.id, model=ticket.model.id, created=created)

    stream = openai.SSE_TYPE if asked.stream else None
    return await generate(context, request, asked.order, renderer_for, stream=stream)


async def embed(context: AppContext, request: HttpRequest) -> Response:
    """Return a vector for each input."""
    asked = openai.parse_embeddings(await read_json(request))

    def renderer_for(ticket: Ticket) -> openai.OpenAIEmbeddingsRenderer:
        return openai.OpenAIEmbeddingsRenderer(asked, model=ticket.model.id)

    return await gather(context, request, asked.order, renderer_for)


def _is_anthropics(request: HttpRequest) -> bool:
    """Whether this is a client of Anthropic, whose API has the same paths for models."""
    return request.sent(b"anthropic-version", None) is not None


_STREAM = Success(
    type=SSE_EVENT,
    media_type=openai.SSE_TYPE,
    example='data: {"id":"chatcmpl-5f1d",...}\n\ndata: [DONE]\n\n',
)
_NO_MODEL = {404: GENERATING[404]}

ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/v1/models",
        view=list_models,
        scopes=INFER,
        errors=OPENAI,
        summary="OpenAI: list the models",
        description="A request with the header `anthropic-version` gets Anthropic's list.",
        answers=(Success(type=openai.OpenAIModels),),
        refusals=_NO_MODEL,
    ),
    Endpoint(
        method="GET",
        path="/v1/models/<path:model>",
        view=get_model,
        scopes=INFER,
        errors=OPENAI,
        summary="OpenAI: one model",
        parameters=(MODEL_IN_PATH,),
        answers=(Success(type=openai.OpenAIModel),),
        refusals=_NO_MODEL,
    ),
    Endpoint(
        method="POST",
        path="/v1/chat/completions",
        view=chat,
        scopes=INFER,
        errors=OPENAI,
        summary="OpenAI: answer a conversation",
        description=(
            "With `stream`, chunks as server-sent events, `[DONE]` the last of them. An error after the "
            "first chunk is an event with `error` in it. What differs: docs/compatibility.md."
        ),
        body=Body(
            type=openai.ChatBody,
            examples={"plain": {"model": "tinyllama-q4", "messages": [{"role": "user", "content": "Hello"}]}},
        ),
        answers=(Success(type=openai.ChatAnswer), _STREAM),
        refusals=GENERATING,
    ),
    Endpoint(
        method="POST",
        path="/v1/completions",
        view=complete,
        scopes=INFER,
        errors=OPENAI,
        summary="OpenAI: continue texts",
        body=Body(
            type=openai.CompletionBody,
            examples={"plain": {"model": "tinyllama-q4", "prompt": "The capital of France is"}},
        ),
        answers=(Success(type=openai.CompletionAnswer), _STREAM),
        refusals=GENERATING,
    ),
    Endpoint(
        method="POST",
        path="/v1/embeddings",
        view=embed,
        scopes=INFER,
        errors=OPENAI,
        summary="OpenAI: a vector for each input",
        body=Body(
            type=openai.EmbeddingsBody,
            examples={"plain": {"model": "tinyllama-q4", "input": ["Hello", "world"]}},
        ),
        answers=(Success(type=openai.EmbeddingsAnswer),),
        refusals=EMBEDDING,
    ),
    Endpoint(
        method="POST",
        path="/v1/responses",
        view=respond,
        scopes=INFER,
        errors=OPENAI,
        summary="OpenAI: answer, in the newer form",
        description="Stateless: nothing is stored, and no earlier response can be named.",
        body=Body(type=openai.ResponsesBody, examples={"plain": {"model": "tinyllama-q4", "input": "Hello"}}),
        answers=(Success(type=openai.ResponseBody), _STREAM),
        refusals=GENERATING,
    ),
)
