# SPDX-License-Identifier: GPL-3.0-only
"""Parse `/api/embed` and the older `/api/embeddings`, and render their answers. Pure."""

from __future__ import annotations

import math
import struct

import msgspec
from msgspec import UNSET, UnsetType

from modeld.dialects.common.body import decode
from modeld.dialects.common.streaming import VectorResponseBuilder, json_string
from modeld.dialects.ollama.common import OllamaEmbedBody, OllamaEmbeddingsBody
from modeld.dialects.ollama.parse import OllamaRequestTerms, terms_of
from modeld.dialects.ollama.render import NS
from modeld.domain.model import ModelSpec
from modeld.domain.request import EmbedRequest, Order, TokenizeRequest
from modeld.domain.request_events import Finished
from modeld.errors import InvalidRequest

_embed = msgspec.json.Decoder(OllamaEmbedBody)
_embeddings = msgspec.json.Decoder(OllamaEmbeddingsBody)


class OllamaEmbedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A vector for each input, in their order. Durations in ns."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    notice: str | UnsetType = UNSET


class OllamaEmbeddingsAnswer(msgspec.Struct, frozen=True):
    """The vector of the prompt."""

    embedding: list[float]
    notice: str | UnsetType = UNSET


class ParsedEmbed(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request for vectors. Without a `request` the model is only to be loaded."""

    terms: OllamaRequestTerms
    request: EmbedRequest | None
    dimensions: int | None = None
    single: bool = False
    """Asked for at /api/embeddings: one vector, as long as it comes."""

    def order(self, spec: ModelSpec) -> Order:
        """Return the order for this model."""
        request = self.request or TokenizeRequest(content="")
        return Order(request=request, model=spec.id, keep_alive_s=self.terms.keep_alive_s)


def parse_embed(body: bytes) -> ParsedEmbed:
    """Read the body of `POST /api/embed`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _embed, '{"model": "llama", "input": "Hello"}')
    inputs = [wire.input] if isinstance(wire.input, str) else wire.input or []
    if inputs == [""]:
        inputs = []
    for number, text in enumerate(inputs):
        if not text:
            raise InvalidRequest(f"`input[{number}]` is empty")
    return ParsedEmbed(
        terms=terms_of(wire),
        request=EmbedRequest(inputs=tuple(inputs), truncate=wire.truncate is not False) if inputs else None,
        dimensions=wire.dimensions,
    )


def parse_embeddings(body: bytes) -> ParsedEmbed:
    """Read the body of `POST /api/embeddings`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _embeddings, '{"model": "llama", "prompt": "Hello"}')
    request = EmbedRequest(inputs=(wire.prompt,), normalize=False, truncate=True) if wire.prompt else None
    return ParsedEmbed(terms=terms_of(wire), request=request, single=True)


class OllamaEmbedRenderer(VectorResponseBuilder):
    """Writes one answer. Feed it every event once, in order; each vector becomes text as it comes.

    Attributes:
      last: the event that ended the request, once it came.
    """

    def __init__(self, asked: ParsedEmbed, spec: ModelSpec) -> None:
        super().__init__()
        self._asked = asked
        self._spec = spec

    def _written(self, vector: bytes) -> bytes:
        return super()._written(self._cut(vector))

    def _cut(self, vector: bytes) -> bytes:
        """Return the first numbers of a vector if so many were asked for, scaled to length 1 again."""
        count = self._asked.dimensions
        if count is None or count * 4 >= len(vector):
            return vector
        numbers = struct.unpack_from(f"<{count}f", vector)
        length = math.sqrt(math.fsum(number * number for number in numbers)) or 1.0
        return struct.pack(f"<{count}f", *(number / length for number in numbers))

    def _whole(self, last: Finished) -> bytes:
        notice = self._asked.terms.notice(self._spec)
        more = b',"notice":%b' % json_string(notice) if notice else b""
        if self._asked.single:
            return b'{"embedding":%b%b}' % (self._vectors[0] if self._vectors else b"[]", more)
        return (
            b'{"model":%b,"embeddings":[%b],"total_duration":%d,"load_duration":%d,"prompt_eval_count":%d%b}'
            % (
                json_string(self._asked.terms.model or self._spec.id),
                b",".join(self._vectors),
                round(last.stats.duration_s * NS),
                round(last.stats.load_s * NS),
                last.usage.prompt_tokens,
                more,
            )
        )
