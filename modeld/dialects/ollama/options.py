# SPDX-License-Identifier: GPL-3.0-only
"""`options` of Ollama: what they make of a request, and which have no meaning here. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from modeld.core.request import AS_MANY_AS_FIT, Sampling
from modeld.dialects.body import MAX_INT32, MAX_SEED
from modeld.dialects.bounds import stops_of
from modeld.dialects.ollama.wire import OllamaOptions
from modeld.dialects.sampling import refuse_contradictions

DEFAULTS = Sampling(top_p=0.9, min_p=0.0)
"""Where a client of Ollama says nothing: its defaults differ from llama.cpp's in these two."""
_SAME_NAME = frozenset(Sampling.__struct_fields__) & frozenset(OllamaOptions.__struct_fields__) - {
    *("seed", "top_k")
}
_UNDER_MIROSTAT = ("top_k", "top_p", "min_p", "typical_p")
OPERATORS = (
    *("num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "numa", "low_vram"),
    *("f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only"),
    "penalize_newline",
)
"""Options about how a model is loaded. Here the operator decides that, once for all clients."""


def sampling_of(options: OllamaOptions | None) -> Sampling:
    """Return how the next token is chosen.

    Mirostat chooses from all tokens, so the samplers that it takes the place of are off beside it; and
    temperature 0 takes the most probable one always, so Mirostat is off then. Ollama does the same.

    Raises: InvalidRequest.
    """
    if options is None:
        return DEFAULTS
    given: dict[str, object] = {
        name: value for name in _SAME_NAME if (value := getattr(options, name)) is not None
    }
    if options.top_k is not None:
        given["top_k"] = max(options.top_k, 0)
    if given.get("temperature") == 0:
        given.pop("mirostat", None)
    if given.get("mirostat"):
        given |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
    sampling = replace(DEFAULTS, seed=_seed(options.seed), **given)
    refuse_contradictions(sampling, given)
    return sampling


def max_tokens_of(options: OllamaOptions | None) -> int:
    """Return the bound of generated tokens."""
    wanted = None if options is None else options.num_predict
    if wanted is None or wanted in (-1, 0):
        return AS_MANY_AS_FIT
    return wanted if wanted > 0 else MAX_INT32


def stop_of(options: OllamaOptions | None) -> tuple[str, ...]:
    """Return the texts before which it ends."""
    stop = None if options is None else options.stop
    return stops_of(stop)


def without_effect(options: OllamaOptions | None) -> tuple[str, ...]:
    """Return the names of those options that were given, and change nothing."""
    if options is None:
        return ()
    names = [name for name in OPERATORS if getattr(options, name) is not None]
    if options.mirostat and options.temperature == 0:
        names.append("mirostat")
    elif options.mirostat:
        names += [name for name in _UNDER_MIROSTAT if getattr(options, name) is not None]
    return tuple(names)


def _seed(seed: int | None) -> int | None:
    """Return a seed of llama.cpp's 32 bits; clients of Ollama draw larger ones."""
    return None if seed is None or seed < 0 else seed % (MAX_SEED + 1)
