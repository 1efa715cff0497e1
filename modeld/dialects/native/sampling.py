# SPDX-License-Identifier: GPL-3.0-only
"""How the next token is chosen, as a native body asks for it; what contradicts itself is refused. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from modeld.core.request import Sampling
from modeld.dialects.native.wire import InferBody
from modeld.dialects.sampling import biases_of, refuse_contradictions

_SAME_NAME = frozenset(Sampling.__struct_fields__) & frozenset(InferBody.__struct_fields__) - {
    *("seed", "logit_bias", "dry_sequence_breakers")
}


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
    sampling = replace(Sampling(seed=seed, logit_bias=biases_of(wire.logit_bias)), **given)
    refuse_contradictions(sampling, given)
    return sampling
