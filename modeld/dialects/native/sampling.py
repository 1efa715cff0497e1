# SPDX-License-Identifier: GPL-3.0-only
"""How the next token is chosen, as a native body asks for it; what contradicts itself is refused. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import cast

from msgspec.structs import replace

from modeld.core.request import Sampling
from modeld.dialects.native.wire import MAX_INT32, Bias, InferBody
from modeld.errors import InvalidRequest

MAX_BIAS = 1000.0
_SAME_NAME = frozenset(Sampling.__struct_fields__) & frozenset(InferBody.__struct_fields__) - {
    *("seed", "logit_bias", "dry_sequence_breakers")
}
_OFF = {
    "top_n_sigma": -1,
    "top_k": 0,
    "typical_p": 1,
    "top_p": 1,
    "min_p": 0,
    "xtc_probability": 0,
    "dynatemp_range": 0,
}
"""Values with which a sampler that chooses from the most probable tokens does nothing."""
_DRAWS = ("xtc_probability", "dynatemp_range")


def sampling_of(wire: InferBody) -> Sampling:
    """Return what the body asks for; what it leaves out, or sets to null, is the default.

    Raises: InvalidRequest.
    """
    given: dict[str, object] = {
        name: value for name in _SAME_NAME if (value := getattr(wire, name)) is not None
    }
    if wire.dry_sequence_breakers is not None:
        given["dry_sequence_breakers"] = tuple(wire.dry_sequence_breakers)
    seed = None if wire.seed == -1 else wire.seed
    sampling = replace(Sampling(seed=seed, logit_bias=_biases(wire.logit_bias)), **given)
    _refuse_contradictions(sampling, given)
    return sampling


def _refuse_contradictions(sampling: Sampling, given: dict[str, object]) -> None:
    active = [name for name, off in _OFF.items() if name in given and given[name] != off]
    if sampling.temperature <= 0:
        draws = "mirostat" if sampling.mirostat else next((name for name in _DRAWS if name in active), None)
        if draws:
            raise InvalidRequest(
                f"`temperature` 0 takes the most probable token always, and `{draws}` draws; raise the "
                f"temperature, or leave out `{draws}`"
            )
    if sampling.mirostat and active:
        raise InvalidRequest(
            f"`mirostat` chooses among all tokens by itself; leave out `{'`, `'.join(active)}`, or `mirostat`"
        )
    if sampling.dynatemp_range > sampling.temperature:
        raise InvalidRequest(
            f"`dynatemp_range` is {sampling.dynatemp_range:g}, and would take the `temperature` of "
            f"{sampling.temperature:g} below 0; the range can be at most the temperature"
        )


def _biases(value: dict[str, Bias] | list[tuple[int, Bias]] | None) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    pairs: Sequence[tuple[str | int, Bias]] = (
        list(value.items()) if isinstance(value, dict) else cast("list[tuple[str | int, Bias]]", value)
    )
    return tuple((_token_id(token), _bias(bias)) for token, bias in pairs)


def _token_id(token: str | int) -> int:
    if isinstance(token, str):
        if not re.fullmatch(r"\d{1,10}", token, re.ASCII):
            raise InvalidRequest(f'`logit_bias`: "{token[:40]}" is no token id; ids are whole numbers')
        token = int(token)
    if not 0 <= token <= MAX_INT32:
        raise InvalidRequest("`logit_bias`: a token id is a whole number from 0 to 2147483647")
    return token


def _bias(bias: Bias) -> float:
    if bias is False:
        return -math.inf
    if bias is True or not -MAX_BIAS <= bias <= MAX_BIAS:
        raise InvalidRequest("`logit_bias`: a bias is a number from -1000 to 1000, or false")
    return float(bias)
