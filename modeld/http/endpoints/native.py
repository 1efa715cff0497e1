# SPDX-License-Identifier: GPL-3.0-only
"""Serve the native API's requests to models: text, embeddings, tokens, prompts."""

from __future__ import annotations

from collections.abc import Callable

from quart import Response

from modeld.dialects import native
from modeld.dialects.common.streaming import NDJSON_TYPE
from modeld.domain.request import Order
from modeld.domain.request_events import Detokenized, Failed, Finished, Templated, Tokenized
from modeld.http.context import AppContext, HttpRequest
from modeld.http.endpoint import EMBEDDING, GENERATING, INFER, Body, Endpoint, Parameter, Success
from modeld.http.generation import gather, generate, submit_request
from modeld.http.replies import json_reply
from modeld.http.streaming import read_json
from modeld.runtime.ticket import Ticket


async def infer(context: AppContext, request: HttpRequest) -> Response:
    """Stream text, or return it whole. The status waits for the first token or the first failure."""
    command = native.parse_infer(await read_json(request))

    def renderer_for(ticket: Ticket) -> native.InferRenderer:
        return native.InferRenderer(
            model=ticket.model.id, request_id=request.id, events=command.events, echo=command.echo
        )

    return await generate(
        context,
        request,
        command.order,
        renderer_for,
        stream=NDJSON_TYPE if command.stream else None,
        at_once=command.events,
    )


async def embed(context: AppContext, request: HttpRequest) -> Response:
    """Return a vector for each input. Each becomes text as it comes, so that no long step holds up others."""
    command = native.parse_embed(await read_json(request))

    def renderer_for(ticket: Ticket) -> native.EmbedRenderer:
        return native.EmbedRenderer(model=ticket.model.id, request_id=request.id)

    return await gather(context, request, command.order, renderer_for)


async def tokenize(context: AppContext, request: HttpRequest) -> Response:
    """Return the tokens of a text."""
    return await _without_slot(context, request, native.parse_tokenize)


async def detokenize(context: AppContext, request: HttpRequest) -> Response:
    """Return the text of tokens."""
    return await _without_slot(context, request, native.parse_detokenize)


async def apply_template(context: AppContext, request: HttpRequest) -> Response:
    """Return the prompt that the model's chat template makes of messages."""
    return await _without_slot(context, request, native.parse_template)


async def _without_slot(
    context: AppContext, request: HttpRequest, parse: Callable[[bytes], Order]
) -> Response:
    order = parse(await read_json(request))
    ticket = await submit_request(context, request, order)
    request.request_stream.cancel_on_disconnect()
    return json_reply(await _answer_of(ticket))


async def _answer_of(ticket: Ticket) -> bytes:
    """Wait for the answer, and return it as JSON. Raises: the error it failed with."""
    body = b""
    while True:
        for event in await ticket.next():
            match event:
                case Tokenized() | Detokenized() | Templated():
                    body = native.vocabulary_answer(event)
                case Failed(problem=problem):
                    raise problem.as_error()
                case Finished():
                    return body
                case _:
                    pass


_LAST_LINE = {
    "done": True,
    "content": "The capital of France is Paris.",
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13, "cached_tokens": 0},
    "stats": {"duration_ms": 231, "queue_ms": 0, "load_ms": 0, "ttft_ms": 70, "tokens_per_second": 43.48},
    "model": "tinyllama-q4.gguf",
    "id": "5f1d2b9a0c3e4d77",
}
_LINES = (
    '{"token":"The","done":false}\n{"done":true,"content":"The","finish_reason":"length",'
    '"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6,"cached_tokens":0},'
    '"stats":{"duration_ms":81,"queue_ms":0,"load_ms":0,"ttft_ms":70,"tokens_per_second":0.0},'
    '"model":"tinyllama-q4.gguf","id":"5f1d2b"}\n'
)
_NO_SLOT = "Loads the model if it is not loaded; needs no slot, so it does not wait for other requests."

ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/infer",
        view=infer,
        scopes=INFER,
        summary="Generate text",
        description=(
            "Answers with one JSON object a line. The last line, and only that one, has `done: true`; "
            "with `stream: false` it is the whole body. The status waits for the first token or the first "
            "failure, unless `events` is true; a failure after that is reported in the last line, with "
            "`error` and `code` in it. A stream that is silent for 15 s carries an empty line."
        ),
        parameters=(
            Parameter(
                name="log",
                meaning="Log level for this request: `info` logs its start and end, `debug` each line",
                schema={"enum": ["off", "error", "info", "debug", "1"]},
            ),
            Parameter(name="X-Log-Level", place="header", meaning="The same, as a header"),
        ),
        body=Body(
            type=native.InferBody,
            examples={
                "prompt": {"prompt": "The capital of France is", "max_tokens": 16},
                "chat": {
                    "model": "tinyllama-q4",
                    "messages": [{"role": "user", "content": "Write a haiku about memory."}],
                    "temperature": 0.7,
                    "seed": 42,
                    "stop": ["\n\n"],
                    "timeout": "30s",
                },
                "json": {
                    "prompt": "Name a colour.",
                    "stream": False,
                    "json_schema": {"type": "object", "properties": {"colour": {"type": "string"}}},
                },
            },
        ),
        answers=(
            Success(
                type=(native.TokenLine, native.QueuedLine, native.LoadingLine, native.FinalLine),
                media_type=NDJSON_TYPE,
                meaning="The text",
                example=_LINES,
            ),
            Success(type=native.FinalLine, example=_LAST_LINE),
        ),
        refusals=GENERATING,
    ),
    Endpoint(
        method="POST",
        path="/embed",
        view=embed,
        scopes=INFER,
        summary="Make embeddings",
        description=(
            "One vector for each input, in their order. Served like `/infer`: it waits for a slot; streams "
            "of the model run alongside. Any model that generates text can embed, too."
        ),
        body=Body(type=native.EmbedBody, examples={"plain": {"input": ["Hello", "world"]}}),
        answers=(Success(type=native.EmbedAnswer),),
        refusals=EMBEDDING,
    ),
    Endpoint(
        method="POST",
        path="/tokenize",
        view=tokenize,
        scopes=INFER,
        summary="Text to tokens",
        description=_NO_SLOT,
        body=Body(type=native.TokenizeBody, examples={"plain": {"content": "Hello"}}),
        answers=(Success(type=native.TokensBody),),
        refusals=EMBEDDING,
    ),
    Endpoint(
        method="POST",
        path="/detokenize",
        view=detokenize,
        scopes=INFER,
        summary="Tokens to text",
        description=_NO_SLOT,
        body=Body(type=native.DetokenizeBody, examples={"plain": {"tokens": [19556]}}),
        answers=(Success(type=native.ContentBody),),
        refusals=EMBEDDING,
    ),
    Endpoint(
        method="POST",
        path="/apply-template",
        view=apply_template,
        scopes=INFER,
        summary="Messages to the prompt that they become",
        description=_NO_SLOT,
        body=Body(
            type=native.TemplateBody, examples={"plain": {"messages": [{"role": "user", "content": "Hello"}]}}
        ),
        answers=(Success(type=native.PromptBody),),
        refusals=EMBEDDING,
    ),
)
