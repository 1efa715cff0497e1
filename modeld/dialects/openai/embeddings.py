# SPDX-License-Identifier: GPL-3.0-only
"""Parse `POST /v1/embeddings` and render its answer. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from modeld.dialects.common.body import Input, inputs_of, keep_alive_of, model_of, timeout_of
from modeld.dialects.common.streaming import VectorResponseBuilder, json_bytes, json_string
from modeld.dialects.openai.common import OwnKeys, effective_end, read
from modeld.dialects.openai.completions import Token
from modeld.domain.request import EmbedRequest, Order, Priority
from modeld.domain.request_events import Event, Finished
from modeld.errors import InvalidRequest

_Input = str | Annotated[list[str | Token | list[Token]], Meta(min_length=1)]


class EmbeddingsBody(OwnKeys, kw_only=True):
    """What `POST /v1/embeddings` takes."""

    input: Annotated[
        _Input, Meta(description="A text, the ids of its tokens, or a list of either, up to 2048")
    ]
    model: Annotated[str | None, Meta(description="Id or alias; default: the default model")] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="float: a list of numbers (default); base64: 32-bit floats, little-endian"),
    ] = None
    user: Annotated[str | None, Meta(description="Taken, and not used")] = None
    dimensions: None = None


class EmbeddingBody(msgspec.Struct, frozen=True):
    """The vector of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(msgspec.Struct, frozen=True):
    """Token counts of all inputs together."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(msgspec.Struct, frozen=True):
    """A vector for each input, in their order, scaled to length 1."""

    object: Literal["list"]
    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingsUsage


class ParsedEmbeddings(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request: the order, and how vectors are written."""

    order: Order
    in_base64: bool


_decoder = msgspec.json.Decoder(EmbeddingsBody)


def parse_embeddings(body: bytes) -> ParsedEmbeddings:
    """Read the body of `POST /v1/embeddings`. Raises: InvalidRequest with a sentence that names the key."""
    wire = read(body, _decoder, '{"model": "...", "input": "Hello"}')
    order = Order(
        request=EmbedRequest(inputs=_inputs(wire.input)),
        model=model_of(wire.model),
        timeout_s=timeout_of(wire.timeout),
        priority=wire.priority or Priority.NORMAL,
        keep_alive_s=keep_alive_of(wire.keep_alive),
    )
    return ParsedEmbeddings(order=order, in_base64=wire.encoding_format == "base64")


class OpenAIEmbeddingsRenderer(VectorResponseBuilder):
    """Writes one answer. Feed it every event once, in order; each vector becomes text as it comes.

    Attributes:
      last: the event that ended the request, once it came.
    """

    def __init__(self, asked: ParsedEmbeddings, *, model: str) -> None:
        super().__init__()
        self._model = model
        self._in_base64 = asked.in_base64

    def take(self, events: Iterable[Event]) -> bytes | None:
        """Return the whole answer when `Finished` is among these, else None; of a failure, nothing."""
        return super().take(map(effective_end, events))

    def _written(self, vector: bytes) -> bytes:
        return b'"%b"' % base64.b64encode(vector) if self._in_base64 else super()._written(vector)

    def _whole(self, last: Finished) -> bytes:
        count = last.usage.prompt_tokens
        entries = (
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)
            for index, vector in enumerate(self._vectors)
        )
        return b'{"object":"list","data":[%b],"model":%b,"usage":%b}\n' % (
            b",".join(entries),
            json_string(self._model),
            json_bytes(EmbeddingsUsage(count, count)),
        )


def _inputs(given: str | list[str | int | list[int]]) -> tuple[Input, ...]:
    if given in ("", [""], [[]]):
        raise InvalidRequest("`input` is empty")
    return inputs_of(given)
