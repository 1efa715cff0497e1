# SPDX-License-Identifier: GPL-3.0-only
"""Parse `/completion`, `/embedding`, `/models/load` and `/models/unload`. Pure."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import msgspec
from msgspec import UNSET, Meta
from msgspec.structs import replace

from modeld.dialects.common.body import MAX_INT32, decode, model_of
from modeld.dialects.common.sampling import (
    Grammar,
    IgnoreEos,
    JsonSchema,
    SamplingBody,
    Stops,
    sampling_of,
    stops_of,
)
from modeld.dialects.common.schema import schema_text
from modeld.domain.request import (
    AS_MANY_AS_FIT,
    Constraint,
    ConstraintKind,
    EmbedRequest,
    GenerateRequest,
    Order,
)
from modeld.errors import InvalidRequest

# ----------------------------------------------------------------------
# What clients of llama.cpp's own server send, as it is written: keys, types, ranges.
#
# Source: tools/server/README.md of llama.cpp. Null means the default. What is accepted without effect
# has a type that says so; any other value of it is refused.

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


# ----------------------------------------------------------------------

_completion = msgspec.json.Decoder(LlamaCompletionBody)
_embedding = msgspec.json.Decoder(LlamaEmbeddingBody)
_model = msgspec.json.Decoder(LlamaModelBody)


class LlamaCompletionOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request for text."""

    order: Order
    request: GenerateRequest
    stream: bool


def parse_completion(body: bytes) -> LlamaCompletionOrder:
    """Read the body of `POST /completion`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _completion, '{"prompt": "Hello"}')
    if not wire.prompt:
        raise InvalidRequest("`prompt` is empty; give it some text")
    _check_order(wire.samplers)
    text = wire.prompt if isinstance(wire.prompt, str) else None
    sampling = sampling_of(wire)
    request = GenerateRequest(
        prompt=text,
        prompt_tokens=() if isinstance(wire.prompt, str) else tuple(wire.prompt),
        max_tokens=_max_tokens(wire.n_predict),
        sampling=replace(sampling, seed=None) if sampling.seed == MAX_UINT32 else sampling,
        stop=stops_of(wire.stop),
        ignore_eos=bool(wire.ignore_eos),
        logprobs=wire.n_probs or None,
        constraint=_constraint(wire),
    )
    return LlamaCompletionOrder(
        order=Order(request=request, model=model_of(wire.model)), request=request, stream=bool(wire.stream)
    )


def parse_embedding(body: bytes) -> Order:
    """Read the body of `POST /embedding`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _embedding, '{"content": "Hello"}')
    given = wire.input if wire.content is None else wire.content
    if not given or (wire.content is not None and wire.input is not None):
        raise InvalidRequest("give `content`: a text, a list of texts, or the ids of the tokens of one")
    entries = [given] if isinstance(given, str) else given
    ids = [entry for entry in entries if isinstance(entry, int)]
    if ids and len(ids) < len(entries):
        raise InvalidRequest("`content` mixes token ids with texts; send either")
    texts = [entry for entry in entries if isinstance(entry, str)]
    if "" in texts:
        raise InvalidRequest(f"`content[{texts.index('')}]` is empty")
    inputs: tuple[str | tuple[int, ...], ...] = (tuple(ids),) if ids else tuple(texts)
    request = EmbedRequest(inputs=inputs, normalize=wire.embd_normalize != -1)
    return Order(request=request, model=model_of(wire.model))


def parse_model(body: bytes) -> str:
    """Read the body of `POST /models/load` and its kin: return the name. Raises: InvalidRequest."""
    return decode(body, _model, '{"model": "llama"}').model


def _max_tokens(wanted: int | None) -> int:
    if wanted == 0:
        raise InvalidRequest("`n_predict` 0 generates nothing; POST /tokenize counts tokens")
    if wanted is None or wanted == -1:
        return AS_MANY_AS_FIT
    return MAX_INT32 if wanted == -2 else wanted


def _check_order(samplers: list[str] | None) -> None:
    """Refuse another order of samplers than the one they are applied in."""
    if samplers is None:
        return
    places = [SAMPLERS.index(name) if name in SAMPLERS else -1 for name in samplers]
    if -1 in places or places != sorted(set(places)):
        raise InvalidRequest(
            f"`samplers` are applied in this order: {', '.join(SAMPLERS)}; leave it out, and switch off what "
            f"is not wanted by its own key"
        )


def _constraint(wire: LlamaCompletionBody) -> Constraint | None:
    schema = wire.json_schema
    has_schema = isinstance(schema, msgspec.Raw) and bytes(schema) != b"null"
    if wire.grammar and has_schema:
        raise InvalidRequest("give either `grammar` or `json_schema`, not both")
    if wire.grammar:
        return Constraint(kind=ConstraintKind.GRAMMAR, text=wire.grammar)
    if not has_schema:
        return None
    text = schema_text(cast("msgspec.Raw", schema), "json_schema")
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text)
