# SPDX-License-Identifier: GPL-3.0-only
"""Build a chain of llama.cpp samplers, and check its parameters.

Order, as llama.cpp's own (common/sampling.cpp): logit bias, penalties, DRY, top-n-sigma, top-k, typical,
top-p, min-p, XTC, temperature, then a draw. Greedy replaces all from top-n-sigma on, Mirostat all but
temperature. (llama.cpp leaves penalties and DRY out of a Mirostat chain, silently; here they stay.)
llama.cpp aborts the process on some values that are not finite or out of range, so `check` refuses them.
"""

from __future__ import annotations

import ctypes
import math
import secrets
from collections.abc import Iterator, Mapping

from modeld.domain.request import Sampling
from modeld.engine.llama.native.library import lib
from modeld.engine.llama.native.vocab import Vocab
from modeld.errors import InvalidRequest

LEAST_TEMPERATURE = 1e-4
MAX_BREAKERS = 8
"""Texts that DRY stops at. For each llama.cpp goes through the whole vocabulary, up to 0.1 s."""
MAX_BREAKER_BYTES = 40
"""What llama.cpp reads of each."""
_MIROSTAT_CANDIDATES = 100
"""Tokens from which Mirostat 1 estimates, as llama.cpp has it."""
_SEEDS = 2**32 - 1
"""2**32 - 1 itself means "draw one" to llama.cpp."""
_AT_LEAST_0 = (
    *("temperature", "top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold"),
    *("dynatemp_range", "dynatemp_exponent", "dry_multiplier", "mirostat_tau", "mirostat_eta"),
)
_ABOVE_0 = ("repeat_penalty",)
_FINITE = ("presence_penalty", "frequency_penalty", "top_n_sigma", "dry_base")


def uses_history(sampling: Sampling, context: int) -> int:
    """Return how many earlier tokens samplers want to know; 0 if none looks at any."""
    return max(_penalty_tokens(sampling, context), _dry_tokens(sampling, context))


def chain_links(vocab: Vocab, sampling: Sampling, biases: Mapping[int, float], context: int) -> Iterator[int]:
    """Make the samplers of a chain, in their order. The chain owns them."""
    size = vocab.size
    if biases:
        array = (lib.llama_logit_bias * len(biases))(
            *(lib.llama_logit_bias(token, bias) for token, bias in biases.items())
        )
        yield lib.llama_sampler_init_logit_bias(size, len(biases), array)
    if last_n := _penalty_tokens(sampling, context):
        repeat, frequency = sampling.repeat_penalty, sampling.frequency_penalty
        yield lib.llama_sampler_init_penalties(size, last_n, repeat, frequency, sampling.presence_penalty)
    if last_n := _dry_tokens(sampling, context):
        yield _dry(vocab, sampling, last_n)
    if sampling.temperature <= 0:
        yield lib.llama_sampler_init_greedy()
        return
    seed = secrets.randbelow(_SEEDS) if sampling.seed is None else sampling.seed % _SEEDS
    if sampling.mirostat:
        yield lib.llama_sampler_init_temp(max(sampling.temperature, LEAST_TEMPERATURE))
        yield _mirostat(size, sampling, seed)
        return
    yield from _truncations(size, sampling, seed)
    yield _temperature(sampling)
    yield lib.llama_sampler_init_dist(seed)


def check(sampling: Sampling) -> None:
    """Raise InvalidRequest for values that llama.cpp cannot be given. Dialects have narrower ranges."""
    for name in _AT_LEAST_0:
        value = getattr(sampling, name)
        if not (math.isfinite(value) and value >= 0):
            raise InvalidRequest(f"{name} is {value}; it must be a number of at least 0")
    for name in _ABOVE_0:
        value = getattr(sampling, name)
        if not (math.isfinite(value) and value > 0):
            raise InvalidRequest(f"{name} is {value}; it must be greater than 0, and 1 means none")
    for name in _FINITE:
        value = getattr(sampling, name)
        if not math.isfinite(value):
            raise InvalidRequest(f"{name} is {value}; it must be a number")
    if sampling.mirostat not in (0, 1, 2):
        raise InvalidRequest(f"mirostat is {sampling.mirostat}; it is 1, 2, or 0 for none")
    if sampling.dynatemp_range > sampling.temperature:
        raise InvalidRequest(
            f"dynatemp_range is {sampling.dynatemp_range:g}, more than the temperature of "
            f"{sampling.temperature:g}: it would fall below 0"
        )
    _check_breakers(sampling)


def _check_breakers(sampling: Sampling) -> None:
    breakers = sampling.dry_sequence_breakers
    if len(breakers) > MAX_BREAKERS:
        raise InvalidRequest(f"dry_sequence_breakers has {len(breakers)} texts; the most is {MAX_BREAKERS}")
    for text in breakers:
        size = len(text.encode("utf-8", errors="replace"))
        if not 1 <= size <= MAX_BREAKER_BYTES or "\0" in text:
            raise InvalidRequest(
                f"dry_sequence_breakers has a text of {size} bytes; each has 1 to {MAX_BREAKER_BYTES}, "
                f"and none is NUL"
            )


def _penalty_tokens(sampling: Sampling, context: int) -> int:
    penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    return 0 if penalties == (1, 0, 0) else _last_n(sampling.repeat_last_n, context)


def _dry_tokens(sampling: Sampling, context: int) -> int:
    active = sampling.dry_multiplier > 0 and sampling.dry_base >= 1
    return _last_n(sampling.dry_penalty_last_n, context) if active else 0


def _last_n(wanted: int, context: int) -> int:
    return context if wanted < 0 else min(wanted, context)


def _dry(vocab: Vocab, sampling: Sampling, last_n: int) -> int:
    breakers = [text.encode("utf-8", errors="replace") for text in sampling.dry_sequence_breakers]
    array = (ctypes.c_char_p * len(breakers))(*breakers)
    return lib.llama_sampler_init_dry(
        vocab.pointer,
        sampling.dry_multiplier,
        sampling.dry_base,
        max(sampling.dry_allowed_length, 1),
        last_n,
        array,
        len(breakers),
    )


def _mirostat(size: int, sampling: Sampling, seed: int) -> int:
    tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
    if sampling.mirostat == 1:
        return lib.llama_sampler_init_mirostat(size, seed, tau, eta, _MIROSTAT_CANDIDATES)
    return lib.llama_sampler_init_mirostat_v2(seed, tau, eta)


def _truncations(size: int, sampling: Sampling, seed: int) -> Iterator[int]:
    if sampling.top_n_sigma > 0:
        yield lib.llama_sampler_init_top_n_sigma(sampling.top_n_sigma)
    if 0 < sampling.top_k < size:
        yield lib.llama_sampler_init_top_k(sampling.top_k)
    if sampling.typical_p < 1:
        yield lib.llama_sampler_init_typical(sampling.typical_p, 1)
    if sampling.top_p < 1:
        yield lib.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0:
        yield lib.llama_sampler_init_min_p(sampling.min_p, 1)
    if sampling.xtc_probability > 0:
        yield lib.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, seed)


def _temperature(sampling: Sampling) -> int:
    temperature = max(sampling.temperature, LEAST_TEMPERATURE)
    spread = min(sampling.dynatemp_range, temperature - LEAST_TEMPERATURE)
    if spread <= 0:
        return lib.llama_sampler_init_temp(temperature)
    return lib.llama_sampler_init_temp_ext(temperature, spread, sampling.dynatemp_exponent)
