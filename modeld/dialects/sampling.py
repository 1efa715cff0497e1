# SPDX-License-Identifier: GPL-3.0-only
"""What every dialect checks of how the next token is to be chosen. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import cast

from modeld.core.request import Sampling
from modeld.dialects.body import MAX_INT32
from modeld.errors import InvalidRequest

MAX_BIAS = 1000.0
Bias = float | bool
"""Added to the logit; false bans the token."""

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


def refuse_contradictions(sampling: Sampling, given: Mapping[str, object]) -> None:
    """Refuse what cannot both hold. `given` has the values that the client wrote, by the names of `Sampling`.

    Raises: InvalidRequest.
    """
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


def biases_of(value: dict[str, Bias] | list[tuple[int, Bias]] | None) -> tuple[tuple[int, float], ...]:
    """Return `logit_bias` as the engine takes it. Raises: InvalidRequest."""
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
