# SPDX-License-Identifier: GPL-3.0-only
"""Refuses metadata on which llama.cpp would not fail but end the process.

Its loader checks some numbers by GGML_ASSERT, which aborts; a daemon that holds other models must
never hand it such a file. Source: llama_model_base::load_hparams and llama-vocab.cpp of the pinned
version; `tests/engine/test_gguf.py` has the cases, found by trying each key with many values.
"""

from __future__ import annotations

from modeld.engine.llama.gguf_cursor import GgufError
from modeld.engine.llama.gguf_header import Header

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS."""
MAX_EXPERTS = 1024
"""LLAMA_MAX_EXPERTS."""
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_NO_TOKENIZERS = ("no_vocab", "none")
_EMBEDDING_TOKENIZER = "bert"
_ONE_EXPERT_IS_NONE = ("hunyuan-dense", "hunyuan_vl")
_EPSILONS = ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon")


def check_sense(header: Header, arch: str, layers: int) -> None:
    """Look at what llama.cpp asserts of a model's metadata.

    Raises: GgufError with the key and its value.
    """
    if layers > MAX_LAYERS:
        raise GgufError(f"the metadata speak of {layers} layers; llama.cpp takes {MAX_LAYERS} at most")
    if layers < 1:
        raise GgufError(f"the metadata are damaged: {arch}.block_count says that the model has no layers")
    predicting = _most(header, f"{arch}.nextn_predict_layers")
    if predicting > layers:
        raise GgufError(
            f"the metadata are damaged: {arch}.nextn_predict_layers is {predicting} of {layers} layers"
        )
    _check_experts(header, arch)
    scaling = header.metadata.get(f"{arch}.rope.scaling.type")
    if isinstance(scaling, str) and scaling not in _ROPE_SCALINGS:
        raise GgufError(f"llama.cpp does not know the {arch}.rope.scaling.type {scaling[:32]!a}")
    for name in _EPSILONS:
        epsilon = header.metadata.get(f"{arch}.attention.{name}")
        if isinstance(epsilon, float) and not epsilon >= 0:  # not a number is wrong as well
            raise GgufError(f"the metadata are damaged: {arch}.attention.{name} is {epsilon}")
    tokenizer = header.metadata.get("tokenizer.ggml.model")
    if tokenizer in _NO_TOKENIZERS:
        raise GgufError("the file has no vocabulary (tokenizer.ggml.model is none): it cannot read text")
    if tokenizer == _EMBEDDING_TOKENIZER:
        raise GgufError(
            "the file has the tokenizer of an embedding model (tokenizer.ggml.model is bert): "
            "it cannot generate text"
        )


def _check_experts(header: Header, arch: str) -> None:
    experts = _most(header, f"{arch}.expert_count")
    if arch in _ONE_EXPERT_IS_NONE and experts <= 1:
        return
    used = _most(header, f"{arch}.expert_used_count")
    groups = _most(header, f"{arch}.expert_group_count")
    groups_used = _most(header, f"{arch}.expert_group_used_count")
    grouped = groups <= 1 or (experts % groups == 0 and 0 < groups_used < groups)
    if experts:
        sound = experts <= MAX_EXPERTS and 0 < used <= experts and groups < experts and grouped
    else:
        sound = not used and not groups
    if not sound:
        raise GgufError(
            f"the metadata are damaged: {experts} experts, {used} of them used, in {groups} groups, "
            f"{groups_used} of them used; llama.cpp takes {MAX_EXPERTS} experts at most"
        )


def _most(header: Header, key: str) -> int:
    """The number, or the greatest of an array; 0 when there is none.

    Negative numbers are great ones to llama.cpp, which reads 32 bits without a sign.
    """
    value = header.metadata.get(key)
    numbers = value if isinstance(value, tuple) else (value,)
    return max((number % 2**32 for number in numbers if isinstance(number, int)), default=0)
