# SPDX-License-Identifier: GPL-3.0-only
"""Parse `POST /embed` and render its answer. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from modeld.dialects.common.body import MAX_INT32, decode, inputs_of, keep_alive_of, model_of, timeout_of
from modeld.dialects.common.streaming import VectorResponseBuilder, json_bytes, json_string
from modeld.dialects.native.render import stats_body
from modeld.dialects.native.wire import RequestTerms, StatsBody
from modeld.domain.request import EmbedRequest, Order, Pooling, Priority
from modeld.domain.request_events import Finished

_Id = Annotated[int, Meta(ge=0, le=MAX_INT32)]


class EmbedBody(RequestTerms, kw_only=True):
    """What `POST /embed` takes."""

    input: Annotated[
        str | Annotated[list[str | _Id | list[_Id]], Meta(min_length=1)],
        Meta(description="A text, the ids of its tokens, or a list of either, up to 2048"),
    ]
    normalize: Annotated[bool | None, Meta(description="Scale to length 1; default true")] = None
    pooling: Annotated[
        Pooling | None,
        Meta(description="How tokens' vectors become one; default: as the model's file says, else mean"),
    ] = None


class EmbedUsage(msgspec.Struct, frozen=True):
    """Token counts of all inputs together."""

    prompt_tokens: int
    total_tokens: int


class EmbedAnswer(msgspec.Struct, frozen=True):
    """One vector for each input, in their order."""

    embeddings: list[list[float]]
    usage: EmbedUsage
    stats: StatsBody
    model: str
    id: str


class EmbedOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request: the order for the scheduler; how the vectors are to be written would stand here."""

    order: Order


_decoder = msgspec.json.Decoder(EmbedBody)


def parse_embed(body: bytes) -> EmbedOrder:
    """Read the body of `POST /embed`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _decoder, '{"input": "Hello"}')
    request = EmbedRequest(
        inputs=inputs_of(wire.input),
        normalize=wire.normalize is not False,
        pooling=wire.pooling,
    )
    order = Order(
        request=request,
        model=model_of(wire.model),
        timeout_s=timeout_of(wire.timeout),
        priority=wire.priority or Priority.NORMAL,
        keep_alive_s=keep_alive_of(wire.keep_alive),
    )
    return EmbedOrder(order=order)


class EmbedRenderer(VectorResponseBuilder):
    """Writes one answer. Feed it every event once, in order; each vector becomes text as it comes.

    Attributes:
      last: the event that ended the request, once it came.
    """

    def __init__(self, *, model: str, request_id: str) -> None:
        super().__init__()
        self._model = model
        self._request_id = request_id

    def _whole(self, last: Finished) -> bytes:
        count = last.usage.prompt_tokens
        return b'{"embeddings":[%b],"usage":%b,"stats":%b,"model":%b,"id":%b}\n' % (
            b",".join(self._vectors),
            json_bytes(EmbedUsage(count, count)),
            json_bytes(stats_body(last.stats)),
            json_string(self._model),
            json_string(self._request_id),
        )
