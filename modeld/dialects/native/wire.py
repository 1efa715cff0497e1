# SPDX-License-Identifier: GPL-3.0-only
"""Bodies and lines of the native API: keys, types, ranges and meanings.

`parse` reads with these, `render` writes with them, and the OpenAPI document is made from them,
so that none of the three can say something else than the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from modeld.dialects.common.body import MAX_INT32, Duration
from modeld.dialects.common.sampling import Grammar, IgnoreEos, JsonSchema, SamplingBody, Stops
from modeld.domain.request import Priority
from modeld.domain.request_events import FinishReason
from modeld.errors import JsonScalar


class MessageBody(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Annotated[str, Meta(min_length=1, max_length=64, description="system, user, assistant, ...")]
    content: Annotated[str, Meta(description="Plain text: control tokens in it mean nothing")]


class TriggerBody(msgspec.Struct, forbid_unknown_fields=True):
    """With what a lazy grammar begins, as llama.cpp's server has it: a token (type 0) or a word (type 1)."""

    type: Annotated[int, Meta(ge=0, le=3)]
    value: str | None = None
    token: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None


class InferBody(SamplingBody, forbid_unknown_fields=True, kw_only=True):
    """What `POST /infer` takes. One of `prompt` and `messages` is needed; null means the default."""

    prompt: Annotated[str | None, Meta(description="Raw text; control tokens in it are parsed")] = None
    messages: Annotated[
        list[MessageBody] | None, Meta(description="Rendered by the model's own chat template")
    ] = None
    model: Annotated[str | None, Meta(description="Id or alias; default: the default model")] = None
    stream: Annotated[bool | None, Meta(description="A line per token (default), or one object")] = None
    events: Annotated[
        bool | None, Meta(description="The stream begins at once and tells of waiting; default false")
    ] = None
    echo: Annotated[
        bool | None, Meta(description="The answer begins with the prompt; not with `messages`; default false")
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_INT32)] | None,
        Meta(description="Default 512; clipped to the room that the context leaves"),
    ] = None
    n_predict: Annotated[
        Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None,
        Meta(description="llama.cpp's name of `max_tokens`; -1: until the context is full"),
    ] = None
    stop: Stops = None
    stop_token_ids: Annotated[
        Annotated[list[Annotated[int, Meta(ge=0, le=MAX_INT32)]], Meta(max_length=64)] | None,
        Meta(description="Tokens that end the text, and have none of their own"),
    ] = None
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=100)] | bool | None,
        Meta(description="true: of the chosen tokens; N: and of the N most probable at each place"),
    ] = None
    grammar: Grammar = None
    json_schema: JsonSchema = UNSET
    grammar_lazy: Annotated[
        bool | None, Meta(description="The text is free until a trigger comes; default false")
    ] = None
    grammar_triggers: Annotated[
        Annotated[list[TriggerBody], Meta(max_length=16)] | None,
        Meta(description="With `grammar_lazy`: from the first of these on, itself included, text is bound"),
    ] = None
    timeout: Annotated[
        Duration | None,
        Meta(description="From arrival to last token: `30s`, `1m30s`, or seconds; default: no limit"),
    ] = None
    priority: Annotated[Priority | None, Meta(description="Class in the queue; default normal")] = None
    keep_alive: Annotated[
        Duration | None,
        Meta(description="How long the model stays loaded afterwards; negative: for ever; default: its ttl"),
    ] = None
    prompt_lookup: Annotated[
        Annotated[int, Meta(ge=0, le=16)] | None,
        Meta(description="Most tokens guessed ahead from what the text repeats; default 0: off"),
    ] = None
    ignore_eos: IgnoreEos = None


class RequestTerms(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """On which terms it is answered; a model that is not loaded is, as for `POST /infer`."""

    model: Annotated[str | None, Meta(description="Id or alias; default: the default model")] = None
    timeout: Annotated[Duration | None, Meta(description="From arrival to answer; default: no limit")] = None
    priority: Annotated[Priority | None, Meta(description="Class in the queue; default normal")] = None
    keep_alive: Annotated[
        Duration | None, Meta(description="How long the model stays loaded afterwards; default: its ttl")
    ] = None


class UsageBody(msgspec.Struct, frozen=True):
    """Token counts. `cached_tokens` of the prompt came from the prefix cache.

    With `prompt_lookup`: `drafted_tokens` were guessed, and `accepted_tokens` of them came true.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    drafted_tokens: int | UnsetType = UNSET
    accepted_tokens: int | UnsetType = UNSET


class StatsBody(msgspec.Struct, frozen=True):
    """Durations in milliseconds, from arrival; `ttft_ms` is null when there was no token."""

    duration_ms: int
    queue_ms: int
    load_ms: int
    ttft_ms: int | None
    tokens_per_second: float


class CandidateBody(msgspec.Struct, frozen=True):
    """A token that could stand at a place, and the natural logarithm of its probability."""

    token: str
    id: int
    logprob: float
    bytes: list[int]


class LogprobBody(msgspec.Struct, frozen=True):
    """The chosen token of one place, and the most probable ones there."""

    token: str
    id: int
    logprob: float
    bytes: list[int]
    top: list[CandidateBody]


class TokenLine(msgspec.Struct, frozen=True):
    """A line of a stream: text of one step."""

    token: str
    done: bool = False
    logprobs: list[LogprobBody] | UnsetType = UNSET


class QueuedLine(msgspec.Struct, frozen=True, tag="queued", tag_field="event"):
    """A line of a stream with `events`: the request waits. `eta_ms` is null while unknown."""

    position: int
    eta_ms: int | None


class LoadingLine(msgspec.Struct, frozen=True, tag="loading", tag_field="event"):
    """A line of a stream with `events`: the model is being loaded; `progress` is in [0, 1]."""

    progress: float


class FinalLine(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of a stream, or the whole body with `stream: false`.

    The error keys are there only when the request failed; `content` is what had come until then.
    """

    done: bool = True
    error: str | UnsetType = UNSET
    code: int | UnsetType = UNSET
    type: str | UnsetType = UNSET
    details: Mapping[str, JsonScalar] | UnsetType = UNSET
    content: str
    logprobs: list[LogprobBody] | UnsetType = UNSET
    finish_reason: FinishReason
    usage: UsageBody
    stats: StatsBody
    model: str
    id: str


class ErrorBody(msgspec.Struct, frozen=True):
    """Every refusal: a sentence, the HTTP status, the kind of error, and numbers where there are some."""

    error: str
    code: int
    type: str
    details: Mapping[str, JsonScalar] | UnsetType = UNSET
