# SPDX-License-Identifier: GPL-3.0-only
"""`POST /embed`: a body to an order, the events of one request to its answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, cast

import msgspec
from msgspec import Meta

from modeld.core.events import Embedded, Event, Failed, Finished
from modeld.core.request import EmbedRequest, Order, Pooling, Priority
from modeld.dialects.body import MAX_INT32, decode, keep_alive_of, model_of, timeout_of
from modeld.dialects.framing import json_bytes, json_string, number_list
from modeld.dialects.native.render import stats_body
from modeld.dialects.native.wire import StatsBody, Terms
from modeld.errors import InvalidRequest

MOST_INPUTS = 2048
"""Inputs of one request, as in OpenAI's API."""

_Id = Annotated[int, Meta(ge=0, le=MAX_INT32)]


class EmbedBody(Terms, kw_only=True):
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


class Embed(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request: the order for the scheduler; how the vectors are to be written would stand here."""

    order: Order


_decoder = msgspec.json.Decoder(EmbedBody)


def parse_embed(body: bytes) -> Embed:
    """Read the body of `POST /embed`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _decoder, '{"input": "Hello"}')
    request = EmbedRequest(
        inputs=_inputs(wire.input),
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
    return Embed(order=order)


class EmbedRenderer:
    """Writes one answer. Feed it every event once, in order; each vector becomes text as it comes.

    Attributes:
      last: the event that ended the request, once it came.
    """

    def __init__(self, *, model: str, request_id: str) -> None:
        self.last: Finished | Failed | None = None
        self._model = model
        self._request_id = request_id
        self._vectors: list[bytes] = []

    def take(self, events: Iterable[Event]) -> bytes | None:
        """Return the whole answer when `Finished` is among these, else None; of a failure, nothing."""
        for event in events:
            match event:
                case Embedded(vectors=vectors):
                    self._vectors += map(number_list, vectors)
                case Finished():
                    self.last = event
                    return self._answer(event)
                case Failed():
                    self.last = event
                case _:
                    pass
        return None

    def _answer(self, last: Finished) -> bytes:
        count = last.usage.prompt_tokens
        return b'{"embeddings":[%b],"usage":%b,"stats":%b,"model":%b,"id":%b}\n' % (
            b",".join(self._vectors),
            json_bytes(EmbedUsage(count, count)),
            json_bytes(stats_body(last.stats)),
            json_string(self._model),
            json_string(self._request_id),
        )


def _inputs(given: str | list[str | int | list[int]]) -> tuple[str | tuple[int, ...], ...]:
    """Return the inputs: a plain list of numbers is one of them.

    Raises: InvalidRequest for an empty one, for too many, and for a list that mixes ids with others.
    """
    entries = [given] if isinstance(given, str) else given
    ids = [entry for entry in entries if isinstance(entry, int)]
    if ids:
        if len(ids) < len(entries):
            raise InvalidRequest(
                "`input` mixes token ids with other inputs; put the ids into a list of their own"
            )
        return (tuple(ids),)
    if len(entries) > MOST_INPUTS:
        raise InvalidRequest(f"`input` has {len(entries)} inputs; send {MOST_INPUTS} at most")
    for number, entry in enumerate(entries):
        if not entry:
            raise InvalidRequest(f"`input[{number}]` is empty")
    inputs = cast("list[str | list[int]]", entries)
    return tuple(entry if isinstance(entry, str) else tuple(entry) for entry in inputs)
