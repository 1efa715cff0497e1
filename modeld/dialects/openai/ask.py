# SPDX-License-Identifier: GPL-3.0-only
"""What the bodies that ask for text become: one order for each choice. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from modeld.core.request import GenerateRequest, Order, Priority, Sampling, Tool
from modeld.dialects.body import MAX_SEED, Body, decode, keep_alive_of, model_of, timeout_of
from modeld.dialects.bounds import stops_of
from modeld.dialects.openai.wire import Asking, Choosing, OwnKeys
from modeld.dialects.sampling import biases_of
from modeld.errors import InvalidRequest

_ONLY_NULL = re.compile(r"`(?P<key>[\w.\[\]]+)` must be null")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
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


def sampling_of(wire: Asking) -> Sampling:
    """Return how tokens are chosen; what the body leaves out is modeld's default. Raises: InvalidRequest."""
    names = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty"]
    if isinstance(wire, Choosing):
        names += ["presence_penalty", "frequency_penalty"]
    given = {name: value for name in names if (value := getattr(wire, name)) is not None}
    sampling = replace(Sampling(), **given)
    if not isinstance(wire, Choosing):
        return sampling
    seed = None if wire.seed is None else wire.seed % (MAX_SEED + 1)
    biases = biases_of(None if wire.logit_bias is None else {**wire.logit_bias})
    if (text := next((token for token, _ in biases if isinstance(token, str)), None)) is not None:
        raise InvalidRequest(f'`logit_bias`: "{text[:40]}" is no token id; ids are whole numbers')
    return replace(sampling, seed=seed, logit_bias=biases)


def stop_of(wire: Choosing) -> tuple[str, ...]:
    """Return the stop sequences."""
    return stops_of(wire.stop)


def choices_of(wire: Choosing, prompts: Sequence[GenerateRequest]) -> tuple[Order, ...]:
    """Return `n` orders for each prompt, whose seeds differ. Raises: InvalidRequest."""
    return tuple(
        order_of(wire, wire.model, replace(request, sampling=_seeded(request.sampling, number)))
        for request in prompts
        for number in range(wire.n or 1)
    )


def include_usage(wire: Choosing) -> bool:
    """Return whether the last chunk has token counts. Raises: InvalidRequest without a stream."""
    if wire.stream_options is not None and not wire.stream:
        raise InvalidRequest("`stream_options` are for streams: set `stream` to true, or leave them out")
    return wire.stream_options is not None and bool(wire.stream_options.include_usage)


def _seeded(sampling: Sampling, number: int) -> Sampling:
    if sampling.seed is None or not number:
        return sampling
    return replace(sampling, seed=(sampling.seed + number) % (MAX_SEED + 1))
