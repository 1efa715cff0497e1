# SPDX-License-Identifier: GPL-3.0-only
"""Serve Anthropic's Messages API."""

from __future__ import annotations

from quart import Response

from modeld.dialects import anthropic
from modeld.dialects.common.streaming import SSE_TYPE
from modeld.http.context import AppContext, HttpRequest
from modeld.http.endpoint import EMBEDDING, INFER, SSE_EVENT, Body, Endpoint, Success
from modeld.http.errors import ANTHROPIC
from modeld.http.generation import gather, generate
from modeld.http.streaming import read_json
from modeld.runtime.ticket import Ticket


async def messages(context: AppContext, request: HttpRequest) -> Response:
    """Return the next message of a conversation. Versions and betas that are named change nothing."""
    asked = anthropic.parse_messages(await read_json(request))

    def renderer_for(ticket: Ticket) -> anthropic.MessageRenderer:
        return anthropic.MessageRenderer(asked, model=ticket.model.id, request_id=request.id)

    stream = SSE_TYPE if asked.stream else None
    response = await generate(context, request, asked.order, renderer_for, stream=stream)
    response.headers["request-id"] = request.id
    return response


async def count_tokens(context: AppContext, request: HttpRequest) -> Response:
    """Return how many tokens a message would have as a prompt."""
    order = anthropic.parse_count(await read_json(request))
    response = await gather(context, request, order, lambda _: anthropic.CountRenderer())
    response.headers["request-id"] = request.id
    return response


_REFUSALS = {status: meaning for status, meaning in EMBEDDING.items() if status not in {503, 507}} | {
    anthropic.OVERLOADED: (
        "The queue is full, the request waited too long, the daemon is shutting down, or the model is "
        "tried again later: what are 429 and 503 elsewhere"
    )
}
_EXAMPLE: dict[str, object] = {"model": "tinyllama-q4", "messages": [{"role": "user", "content": "Hello"}]}

ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/messages",
        view=messages,
        scopes=INFER,
        errors=ANTHROPIC,
        summary="Anthropic: the next message of a conversation",
        description=(
            "With `stream: true` as server-sent events: `message_start`, then for each block "
            "`content_block_start`, `content_block_delta` and `content_block_stop`, then "
            "`message_delta` and `message_stop`; `ping` in between, and `error` if it breaks."
        ),
        body=Body(type=anthropic.AnthropicMessagesBody, examples={"plain": {**_EXAMPLE, "max_tokens": 100}}),
        answers=(Success(type=anthropic.AnthropicAnswer), Success(type=SSE_EVENT, media_type=SSE_TYPE)),
        refusals=_REFUSALS,
    ),
    Endpoint(
        method="POST",
        path="/v1/messages/count_tokens",
        view=count_tokens,
        scopes=INFER,
        errors=ANTHROPIC,
        summary="Anthropic: how many tokens a message would have",
        body=Body(type=anthropic.AnthropicCountBody, examples={"plain": _EXAMPLE}),
        answers=(Success(type=anthropic.AnthropicCount),),
        refusals=_REFUSALS,
    ),
)
