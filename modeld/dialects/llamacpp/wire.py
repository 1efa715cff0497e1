# SPDX-License-Identifier: GPL-3.0-only
"""What clients of llama.cpp's own server send, as it is written: keys, types, ranges.

Source: tools/server/README.md of llama.cpp. Null means the default. What is accepted without effect
has a type that says so; any other value of it is refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta

from modeld.dialects.body import MAX_INT32
from modeld.dialects.bounds import Grammar, IgnoreEos, JsonSchema, Stops
from modeld.dialects.sampling import SamplingBody

MAX_UINT32 = 2**32 - 1
"""As a seed: draw one."""
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
"""The order that samplers are applied in. A list that keeps it, with all that are in use, changes nothing."""

TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
_Off = Annotated[Literal[False] | None, Meta(description="Not served when true")]
_Zero = Annotated[Literal[0] | None, Meta(description="Not served with another value")]
_Empty = Annotated[list[msgspec.Raw], Meta(max_length=0)]
_NoEffect = Annotated[int | None, Meta(description="No effect")]


class LlamaCompletionBody(SamplingBody, forbid_unknown_fields=True, kw_only=True):
    """What `POST /completion` takes."""

    prompt: Annotated[
        str | Annotated[list[TokenId], Meta(min_length=1)],
        Meta(description="Raw text, whose control tokens are parsed, or the ids of tokens; one prompt"),
    ]
    model: Annotated[str | None, Meta(description="Id or alias; default: the default model")] = None
    stream: Annotated[bool | None, Meta(description="Server-sent events; default false")] = None
    n_predict: Annotated[
        Annotated[int, Meta(ge=-2, le=MAX_INT32)] | None,
        Meta(description="Most tokens; default and -1: what a slot's share leaves; -2: the whole context"),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-1, le=MAX_UINT32)] | None,
        Meta(description="The same seed gives the same text; default, -1 and 4294967295: a fresh one"),
    ] = None
    stop: Stops = None
    ignore_eos: IgnoreEos = None
    n_probs: Annotated[
        Annotated[int, Meta(ge=0, le=100)] | None, Meta(description="Tell the N most probable tokens")
    ] = None
    grammar: Grammar = None
    json_schema: JsonSchema = UNSET
    samplers: Annotated[
        list[str] | None, Meta(description="Only in llama.cpp's own order, with all that are used")
    ] = None
    cache_prompt: Annotated[bool | None, Meta(description="No effect: beginnings are cached")] = None
    id_slot: _NoEffect = None
    n_keep: _NoEffect = None
    n_discard: _NoEffect = None
    n_cache_reuse: _NoEffect = None
    sse_ping_interval: _NoEffect = None
    n_cmpl: Annotated[Literal[1] | None, Meta(description="One prompt, one text")] = None
    n_indent: _Zero = None
    min_keep: _Zero = None
    t_max_predict_ms: _Zero = None
    return_tokens: _Off = None
    return_progress: _Off = None
    timings_per_token: _Off = None
    post_sampling_probs: _Off = None
    response_fields: Annotated[_Empty | None, Meta(description="All are told")] = None
    lora: Annotated[_Empty | None, Meta(description="The operator sets adapters")] = None


class LlamaEmbeddingBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `POST /embedding` takes: `content`, or `input` which means the same."""

    content: Annotated[
        str | Annotated[list[str | TokenId], Meta(min_length=1, max_length=2048)] | None,
        Meta(description="A text, several, or the ids of the tokens of one"),
    ] = None
    input: Annotated[
        str | Annotated[list[str | TokenId], Meta(min_length=1, max_length=2048)] | None,
        Meta(description="Another name of `content`"),
    ] = None
    model: Annotated[str | None, Meta(description="Id or alias; default: the default model")] = None
    embd_normalize: Annotated[
        Literal[-1, 2] | None, Meta(description="2, the default: to length 1; -1: as they come")
    ] = None
    encoding_format: Literal["float"] | None = None


class LlamaModelBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `POST /models/load` and `/models/unload` take."""

    model: Annotated[str, Meta(min_length=1, description="Id or alias")]
