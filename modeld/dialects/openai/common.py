# SPDX-License-Identifier: GPL-3.0-only
"""Keys, ranges and errors that the bodies of OpenAI's API share.

A key of type `None` is one that OpenAI knows and modeld does not support: null is all it may be.
Source: OpenAI's API reference, https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from modeld.dialects.common.body import (
    MAX_INT32,
    MAX_SEED,
    Body,
    Duration,
    decode,
    keep_alive_of,
    model_of,
    timeout_of,
)
from modeld.dialects.common.sampling import biases_of, stops_of
from modeld.dialects.common.streaming import json_bytes, rounded, text_of
from modeld.domain.request import GenerateRequest, Order, Priority, Sampling, Tool
from modeld.domain.request_events import Event, Failed, Finished, FinishReason, Logprobs, TokenLogprob, Usage
from modeld.errors import CUT_SHORT, Draining, Evicted, InvalidRequest, JsonScalar, ModeldError, Problem

MOST_CHOICES = 128
AnyJson = Annotated[msgspec.Raw, Meta(extra_json_schema={"description": "Any JSON"})]
MAX_INT64 = 2**63 - 1
_Stop = Annotated[str, Meta(min_length=1, max_length=1000)]


class OwnKeys(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Keys of modeld's own API that work here too, as `extra_body`."""

    timeout: Annotated[Duration | None, Meta(description="From arrival to last token; not OpenAI's")] = None
    priority: Annotated[Priority | None, Meta(description="Class in the queue; not OpenAI's")] = None
    keep_alive: Annotated[
        Duration | None, Meta(description="How long the model stays loaded afterwards; not OpenAI's")
    ] = None


class SamplingKeys(OwnKeys, kw_only=True):
    """What every body that asks for text may have. null stands for the default."""

    model: Annotated[str | None, Meta(description="Id or alias; default: the default model")] = None
    stream: Annotated[bool | None, Meta(description="Server-sent events; default false")] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None, Meta(description="Default 0.8; 0 is greedy")
    ] = None
    top_p: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Default 0.95")] = None
    user: Annotated[str | None, Meta(description="Taken, and not used")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_INT32)] | None, Meta(description="Default 40; not OpenAI's")
    ] = None
    min_p: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Default 0.05; not OpenAI's")
    ] = None
    repeat_penalty: Annotated[
        Annotated[float, Meta(gt=0, le=10)] | None, Meta(description="Default 1: off; not OpenAI's")
    ] = None
    ignore_eos: Annotated[bool | None, Meta(description="Ban end-of-generation tokens; not OpenAI's")] = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How a stream is written."""

    include_usage: Annotated[bool | None, Meta(description="The last chunk has token counts")] = None
    include_obfuscation: Annotated[bool | None, Meta(description="Taken; streams are never padded")] = None


class ChoiceKeys(SamplingKeys, kw_only=True):
    """What bodies with choices may have: `/v1/chat/completions` and `/v1/completions`."""

    n: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None,
        Meta(description="Choices, each a generation of its own; slots and queue of the model bound them"),
    ] = None
    stream_options: StreamOptions | None = None
    stop: Annotated[
        _Stop | Annotated[list[_Stop], Meta(max_length=4)] | None,
        Meta(description="The text ends before the first of these"),
    ] = None
    presence_penalty: Annotated[Annotated[float, Meta(ge=-2, le=2)] | None, Meta(description="Default 0")] = (
        None
    )
    frequency_penalty: Annotated[
        Annotated[float, Meta(ge=-2, le=2)] | None, Meta(description="Default 0")
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-MAX_INT64 - 1, le=MAX_INT64)] | None,
        Meta(description="The same seed gives the same text; the choice of index i has the seed plus i"),
    ] = None
    logit_bias: Annotated[
        dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None, Meta(description="By token id")
    ] = None


class TokenDetails(msgspec.Struct, frozen=True):
    """What is known of a prompt's tokens: how many came from the prefix cache."""

    cached_tokens: int


class OpenAIUsage(msgspec.Struct, frozen=True):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that could stand at a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobBody(msgspec.Struct, frozen=True):
    """The token of a place, and the most probable ones there."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ErrorDetail(msgspec.Struct, frozen=True):
    """An error: a sentence, its kind as OpenAI names it, the key it is about, its kind as modeld names it."""

    message: str
    type: str
    param: str | None
    code: str | None
    details: Mapping[str, JsonScalar] | UnsetType = UNSET


class OpenAIError(msgspec.Struct, frozen=True):
    """OpenAI's envelope of an error."""

    error: ErrorDetail


FinishText = Literal["stop", "length", "tool_calls"]


def usage_body(usage: Usage) -> OpenAIUsage:
    """Return token counts as they are written."""
    return OpenAIUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=TokenDetails(usage.cached_tokens),
    )


def logprob_body(entry: Logprobs) -> TokenLogprobBody:
    """Return the log-probabilities of a place as chats have them."""
    chosen = _top(entry.chosen)
    return TokenLogprobBody(
        chosen.token, chosen.logprob, chosen.bytes, [_top(candidate) for candidate in entry.top]
    )


def _top(token: TokenLogprob) -> TopLogprob:
    return TopLogprob(text_of(token), rounded(token.logprob), list(token.text))


# ----------------------------------------------------------------------
# What the bodies that ask for text become: one order for each choice. Pure.

_ONLY_NULL = re.compile(r"`(?P<key>[\w.\[\]]+)` must be null")


class ParsedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request: an order for each choice, and how the client wants its answer."""

    orders: tuple[Order, ...]
    """Choices of one prompt follow each other."""
    n: int = 1
    """Choices of one prompt."""
    stream: bool = False
    include_usage: bool = False
    tools: tuple[Tool, ...] = ()
    """Functions that may be called."""
    forced: bool = False
    """The text is bound to be a call."""
    one_call: bool = False
    """Of each answer only the first call counts."""
    echo: tuple[str, ...] = ()
    """For each prompt the text that its answers begin with."""


def read(body: bytes, decoder: msgspec.json.Decoder[Body], example: str) -> Body:
    """Read a body. Raises: InvalidRequest with a sentence that names the key."""
    try:
        return decode(body, decoder, example)
    except InvalidRequest as error:
        if found := _ONLY_NULL.match(error.message):
            raise InvalidRequest(f"`{found['key']}` is not supported here; leave it out") from None
        raise


def refuse(wire: object, key: str, why: str = "") -> None:
    """Refuse a key that is true. Raises: InvalidRequest."""
    if getattr(wire, key):
        raise InvalidRequest(f"`{key}` is not supported here{why}; leave it out")


def order_of(wire: OwnKeys, model: str | None, request: GenerateRequest) -> Order:
    """Return an order on the terms of a body. Raises: InvalidRequest."""
    return Order(
        request=request,
        model=model_of(model),
        timeout_s=timeout_of(wire.timeout),
        priority=wire.priority or Priority.NORMAL,
        keep_alive_s=keep_alive_of(wire.keep_alive),
    )


def sampling_of(wire: SamplingKeys) -> Sampling:
    """Return how tokens are chosen; what the body leaves out is modeld's default. Raises: InvalidRequest."""
    names = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty"]
    if isinstance(wire, ChoiceKeys):
        names += ["presence_penalty", "frequency_penalty"]
    given = {name: value for name in names if (value := getattr(wire, name)) is not None}
    sampling = replace(Sampling(), **given)
    if not isinstance(wire, ChoiceKeys):
        return sampling
    seed = None if wire.seed is None else wire.seed % (MAX_SEED + 1)
    biases = biases_of(None if wire.logit_bias is None else {**wire.logit_bias})
    if (text := next((token for token, _ in biases if isinstance(token, str)), None)) is not None:
        raise InvalidRequest(f'`logit_bias`: "{text[:40]}" is no token id; ids are whole numbers')
    return replace(sampling, seed=seed, logit_bias=biases)


def stop_of(wire: ChoiceKeys) -> tuple[str, ...]:
    """Return the stop sequences."""
    return stops_of(wire.stop)


def choices_of(wire: ChoiceKeys, prompts: Sequence[GenerateRequest]) -> tuple[Order, ...]:
    """Return `n` orders for each prompt, whose seeds differ. Raises: InvalidRequest."""
    return tuple(
        order_of(wire, wire.model, replace(request, sampling=_seeded(request.sampling, number)))
        for request in prompts
        for number in range(wire.n or 1)
    )


def include_usage(wire: ChoiceKeys) -> bool:
    """Return whether the last chunk has token counts. Raises: InvalidRequest without a stream."""
    if wire.stream_options is not None and not wire.stream:
        raise InvalidRequest("`stream_options` are for streams: set `stream` to true, or leave them out")
    return wire.stream_options is not None and bool(wire.stream_options.include_usage)


def _seeded(sampling: Sampling, number: int) -> Sampling:
    if sampling.seed is None or not number:
        return sampling
    return replace(sampling, seed=(sampling.seed + number) % (MAX_SEED + 1))


# ----------------------------------------------------------------------
# Errors in OpenAI's envelope: of a refusal, and in the middle of a stream. Pure.

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_CODES: Mapping[str, str] = {"prompt_too_long": "context_length_exceeded"}
"""Kinds for which clients look under OpenAI's own code."""
_KEY = re.compile(r"`([A-Za-z_][\w.\[\]]*)`|unknown key \"([^\"]{1,80})\"")


def error_detail(problem: Problem) -> ErrorDetail:
    """Return an error as OpenAI writes it. `param` is the key that its sentence names first."""
    status = problem.status
    found = _KEY.search(problem.message) if status in (400, 422) else None
    return ErrorDetail(
        message=problem.message,
        type=_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        param=(found[1] or found[2]) if found else "model" if problem.kind == "model_not_found" else None,
        code=_CODES.get(problem.kind, problem.kind),
        details=dict(problem.details) or UNSET,
    )


def error_answer(problem: Problem, _request_id: str) -> tuple[int, bytes]:
    """Return the status of a refusal and its body; the id is in `x-request-id`, where OpenAI has it."""
    return problem.status, error_bytes(problem)


def error_bytes(problem: Problem) -> bytes:
    """Return the JSON of an error."""
    return json_bytes(OpenAIError(error_detail(problem)))


def effective_end(event: Event) -> Event:
    """Return an event as OpenAI's clients can understand it.

    They know no reason for an answer that the server cut; as an error they try again.
    """
    match event:
        case Finished(reason=FinishReason.SHUTDOWN):
            error: ModeldError = Draining(CUT_SHORT)
        case Finished(reason=FinishReason.CANCELLED):
            error = Evicted("this answer was cut, as its model was unloaded; ask again")
        case _:
            return event
    return Failed(problem=error.as_problem(), usage=event.usage, stats=event.stats)
