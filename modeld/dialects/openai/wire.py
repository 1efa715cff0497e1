# SPDX-License-Identifier: GPL-3.0-only
"""What bodies of OpenAI's API have in common, as they are written. OpenAI's ranges hold.

A key of type `None` is one that OpenAI knows and modeld does not support: null is all it may be.
Source: OpenAI's API reference, https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from modeld.core.events import Logprobs, TokenLogprob, Usage
from modeld.core.request import Priority
from modeld.dialects.body import MAX_INT32, Duration
from modeld.dialects.logprobs import rounded, text_of
from modeld.errors import JsonScalar

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


class Asking(OwnKeys, kw_only=True):
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


class Choosing(Asking, kw_only=True):
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
