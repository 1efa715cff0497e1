# SPDX-License-Identifier: GPL-3.0-only
"""Bodies of `/completion`, `/embedding`, `/models/load` and `/models/unload` to what is asked for. Pure."""

from __future__ import annotations

from typing import cast

import msgspec
from msgspec.structs import replace

from modeld.core.request import (
    AS_MANY_AS_FIT,
    Constraint,
    ConstraintKind,
    EmbedRequest,
    GenerateRequest,
    Order,
)
from modeld.dialects.body import MAX_INT32, decode, model_of
from modeld.dialects.bounds import stops_of
from modeld.dialects.llamacpp.wire import (
    MAX_UINT32,
    SAMPLERS,
    LlamaCompletionBody,
    LlamaEmbeddingBody,
    LlamaModelBody,
)
from modeld.dialects.sampling import sampling_of
from modeld.dialects.schema import schema_text
from modeld.errors import InvalidRequest

_completion = msgspec.json.Decoder(LlamaCompletionBody)
_embedding = msgspec.json.Decoder(LlamaEmbeddingBody)
_model = msgspec.json.Decoder(LlamaModelBody)


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request for text."""

    order: Order
    request: GenerateRequest
    stream: bool


def parse_completion(body: bytes) -> Completion:
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
    return Completion(
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
