# SPDX-License-Identifier: GPL-3.0-only
"""Refuse metadata on which llama.cpp would abort the process instead of failing.

Its loader checks some numbers by GGML_ASSERT, which aborts; a daemon that holds other models must
never hand it such a file. Source: llama_model_base::load_hparams and llama-vocab.cpp of the pinned
version; `tests/engine/llama/gguf/test_facts.py` has the cases, found by trying each key with many values.
"""

from __future__ import annotations

from modeld.engine.llama.gguf.cursor import GgufError
from modeld.engine.llama.gguf.reader import Header
from modeld.engine.llama.gguf.tables import ENCODERS

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS."""
MAX_EXPERTS = 1024
"""LLAMA_MAX_EXPERTS."""
MIN_CONTEXT = 8
"""Tokens. Nothing can be asked of a model that takes fewer."""
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_NO_TOKENIZERS = ("no_vocab", "none")
_EMBEDDING_TOKENIZER = "bert"
_ONE_EXPERT_IS_NONE = ("hunyuan-dense", "hunyuan_vl")
_SENTENCE_PIECE = "llama"
_NEVER_IN_TEXT = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
"""Bytes that UTF-8 does not use."""
_NO_WEIGHTS = frozenset({"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"})
"""Types that llama.cpp does not multiply by; some it only computes with, between two steps."""
_ADDED = ("norm.weight", "norm.bias", ".bias")
_INDEX = "tid2eid"
_EPSILONS = ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon")


def check_metadata(header: Header, arch: str, layers: int) -> None:
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
    context = header.metadata.get(f"{arch}.context_length")
    if isinstance(context, int) and 0 < context < MIN_CONTEXT:
        raise GgufError(
            f"the metadata are damaged: {arch}.context_length is {context}; it must be {MIN_CONTEXT} at least"
        )
    _check_experts(header, arch)
    scaling = header.metadata.get(f"{arch}.rope.scaling.type")
    if isinstance(scaling, str) and scaling not in _ROPE_SCALINGS:
        raise GgufError(f"llama.cpp does not know the {arch}.rope.scaling.type {scaling[:32]!a}")
    for name in _EPSILONS:
        epsilon = header.metadata.get(f"{arch}.attention.{name}")
        if isinstance(epsilon, float) and not epsilon >= 0:  # not a number is wrong as well
            raise GgufError(f"the metadata are damaged: {arch}.attention.{name} is {epsilon}")
    _check_tensors(header)
    if header.twin_token is not None:
        shown = header.twin_token.decode(errors="replace")
        raise GgufError(f"the vocabulary is damaged: it has two tokens of the text {shown!a}")
    tokenizer = header.metadata.get("tokenizer.ggml.model")
    if tokenizer == _SENTENCE_PIECE:
        _check_bytes(header)
    if tokenizer in _NO_TOKENIZERS:
        raise GgufError("the file has no vocabulary (tokenizer.ggml.model is none): it cannot read text")
    if tokenizer == _EMBEDDING_TOKENIZER and arch not in ENCODERS:
        raise GgufError(
            "the file has the tokenizer of an embedding model (tokenizer.ggml.model is bert): "
            "it cannot generate text"
        )


def _check_tensors(header: Header) -> None:
    """Refuse types that llama.cpp would find out about in the middle of its first decode."""
    for tensor in header.tensors:
        added = tensor.name.endswith(_ADDED)
        weight = tensor.name.endswith(".weight") and _INDEX not in tensor.name
        if (added and tensor.type != "F32") or (weight and tensor.type in _NO_WEIGHTS):
            raise GgufError(
                f"the file is damaged: its tensor {tensor.name!a} has the type {tensor.type}"
                + (", and llama.cpp adds and scales by F32 only" if added else ", which no weights have")
            )


def _check_bytes(header: Header) -> None:
    """Refuse a vocabulary that cannot spell every text: llama.cpp ends the process at the first one."""
    missing = [byte for byte in range(256) if byte not in header.byte_tokens | _NEVER_IN_TEXT]
    if missing:
        raise GgufError(
            f"the vocabulary is damaged: {len(missing)} bytes have no token, first of them 0x{missing[0]:02X}"
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
