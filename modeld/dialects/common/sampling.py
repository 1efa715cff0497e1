# SPDX-License-Identifier: GPL-3.0-only
"""Read and check sampling parameters that the dialects share. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, UnsetType
from msgspec.structs import replace

from modeld.dialects.common.body import MAX_INT32, MAX_SEED
from modeld.domain.request import Sampling
from modeld.errors import InvalidRequest

MAX_BIAS = 1000.0
LONGEST_BIAS_TEXT = 200
MOST_BIAS_TEXTS = 512
MOST_BIAS_TEXT = 10_000
"""Different texts, and characters of all: the engine tokenizes them between two steps (512 take 50 ms)."""
Bias = float | bool
"""Added to the logit; false bans the token."""


class SamplingBody(msgspec.Struct, kw_only=True):
    """Samplers as llama.cpp's server names them; null means the default, which is llama.cpp's."""

    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None, Meta(description="Default 0.8; 0 is greedy")
    ] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_INT32)] | None, Meta(description="Default 40; 0 keeps all tokens")
    ] = None
    top_p: Annotated[Annotated[float, Meta(gt=0, le=1)] | None, Meta(description="Default 0.95")] = None
    min_p: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Default 0.05")] = None
    typical_p: Annotated[Annotated[float, Meta(gt=0, le=1)] | None, Meta(description="Default 1: off")] = None
    top_n_sigma: Annotated[
        Annotated[float, Meta(ge=-1, le=100)] | None,
        Meta(description="Keeps logits that many standard deviations below the highest; default -1: off"),
    ] = None
    xtc_probability: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="How often those above the threshold but the last are left out; default 0: off"),
    ] = None
    xtc_threshold: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Default 0.1; above 0.5 is off")
    ] = None
    dynatemp_range: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None,
        Meta(description="The temperature varies so far up and down, by entropy; default 0: off"),
    ] = None
    dynatemp_exponent: Annotated[
        Annotated[float, Meta(ge=0, le=10)] | None, Meta(description="Default 1")
    ] = None
    mirostat: Annotated[
        Annotated[int, Meta(ge=0, le=2)] | None,
        Meta(description="Version 1 or 2 draws, instead of `top_k` to `xtc`; default 0: off"),
    ] = None
    mirostat_tau: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None, Meta(description="Target surprise in bits; default 5")
    ] = None
    mirostat_eta: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Learning rate; default 0.1")
    ] = None
    repeat_penalty: Annotated[
        Annotated[float, Meta(gt=0, le=10)] | None, Meta(description="Default 1: off")
    ] = None
    presence_penalty: Annotated[
        Annotated[float, Meta(ge=-10, le=10)] | None, Meta(description="Default 0: off")
    ] = None
    frequency_penalty: Annotated[
        Annotated[float, Meta(ge=-10, le=10)] | None, Meta(description="Default 0: off")
    ] = None
    repeat_last_n: Annotated[
        Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None,
        Meta(description="Tokens that the three penalties look back on; default 64; -1: the context"),
    ] = None
    dry_multiplier: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None,
        Meta(description="Penalty of what would prolong a repetition; default 0: off"),
    ] = None
    dry_base: Annotated[
        Annotated[float, Meta(ge=1, le=10)] | None,
        Meta(description="It grows by this factor a token; default 1.75"),
    ] = None
    dry_allowed_length: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_INT32)] | None,
        Meta(description="Tokens that may be repeated; default 2"),
    ] = None
    dry_penalty_last_n: Annotated[
        Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None,
        Meta(description="Tokens that are searched for repetitions; default 64; -1: the context"),
    ] = None
    dry_sequence_breakers: Annotated[
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=40)]], Meta(max_length=8)] | None,
        Meta(description='No repetition reaches over these; default ["\\n", ":", "\\"", "*"]'),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-1, le=MAX_SEED)] | None,
        Meta(description="The same seed gives the same text; default, and -1: a fresh one"),
    ] = None
    logit_bias: Annotated[
        Annotated[dict[str, Bias], Meta(max_length=4096)]
        | Annotated[list[tuple[int | str, Bias]], Meta(max_length=4096)]
        | None,
        Meta(
            description='{"token id": bias} or [[token id, bias]]; -1000 to 1000, false bans the token. '
            "A text in place of an id means each of its tokens"
        ),
    ] = None


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


def biases_of(
    value: dict[str, Bias] | list[tuple[int | str, Bias]] | None,
) -> tuple[tuple[int | str, float], ...]:
    """Return `logit_bias` as the engine takes it: for ids of tokens and for texts. Raises: InvalidRequest.

    As in llama.cpp's server a key of an object is an id if it is a number, and in a list any string is text.
    """
    if value is None:
        return ()
    pairs = [(_key(key), bias) for key, bias in value.items()] if isinstance(value, dict) else value
    texts = [token for token, _ in pairs if isinstance(token, str)]
    if "" in texts:
        raise InvalidRequest("`logit_bias`: an empty text has no tokens")
    if (different := len(set(texts))) > MOST_BIAS_TEXTS:
        raise InvalidRequest(f"`logit_bias` has {different} texts; send {MOST_BIAS_TEXTS} at most, or ids")
    if max(map(len, texts), default=0) > LONGEST_BIAS_TEXT or sum(map(len, texts)) > MOST_BIAS_TEXT:
        raise InvalidRequest(
            f"`logit_bias`: a text has at most {LONGEST_BIAS_TEXT} characters, and all of them together "
            f"{MOST_BIAS_TEXT}"
        )
    return tuple((_token(token), _bias(bias)) for token, bias in pairs)


_ID = re.compile(r"(-?\d+)(?:\.0+)?", re.ASCII)


def _key(key: str) -> int | str:
    found = _ID.fullmatch(key)
    if found is None:
        return key
    return int(found[1]) if len(found[1]) <= 20 else MAX_INT32 + 1  # Refused: no id has as many digits.


def _token(token: int | str) -> int | str:
    if isinstance(token, int) and not 0 <= token <= MAX_INT32:
        raise InvalidRequest("`logit_bias`: a token id is a whole number from 0 to 2147483647")
    return token


def _bias(bias: Bias) -> float:
    if bias is False:
        return -math.inf
    if bias is True or not -MAX_BIAS <= bias <= MAX_BIAS:
        raise InvalidRequest("`logit_bias`: a bias is a number from -1000 to 1000, or false")
    return float(bias)


_SAME_NAME = frozenset(Sampling.__struct_fields__) & frozenset(SamplingBody.__struct_fields__) - {
    *("seed", "logit_bias", "dry_sequence_breakers")
}


def sampling_of(wire: SamplingBody) -> Sampling:
    """Return what the body asks for; what it leaves out, or sets to null, is the default.

    Raises: InvalidRequest.
    """
    given: dict[str, object] = {
        name: value for name in _SAME_NAME if (value := getattr(wire, name)) is not None
    }
    if wire.dry_sequence_breakers is not None:
        given["dry_sequence_breakers"] = tuple(wire.dry_sequence_breakers)
    seed = None if wire.seed == -1 else wire.seed
    sampling = replace(Sampling(seed=seed, logit_bias=biases_of(wire.logit_bias)), **given)
    refuse_contradictions(sampling, given)
    return sampling


# ----------------------------------------------------------------------
# What bounds a text: keys that dialects spell alike, with llama.cpp's names, types and ranges. Pure.

StopText = Annotated[str, Meta(min_length=1, max_length=1000)]
Stops = Annotated[
    StopText | Annotated[list[StopText], Meta(max_length=64)] | None,
    Meta(description="The text ends before the first of these"),
]
Grammar = Annotated[str | None, Meta(description="GBNF grammar that the text must match")]
JsonSchema = Annotated[
    msgspec.Raw | UnsetType,
    Meta(
        description="JSON schema that the text must satisfy; not together with `grammar`",
        extra_json_schema={"type": ["object", "null"]},
    ),
]
IgnoreEos = Annotated[bool | None, Meta(description="Ban end-of-generation tokens; default false")]


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """Return stop sequences: one alone is written without a list."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
