# SPDX-License-Identifier: GPL-3.0-only
"""Check the header of a LoRA adapter before llama.cpp loads it. Pure.

llama.cpp refuses most of what is wrong with an adapter, but ends the process over the rest, some of it only
in the first decode: metadata of another type than it expects, halves of other ranks, more dimensions than the
weight has, types it cannot multiply by. A token embedding that also makes the logits (a tied one) cannot
be adapted at all: it takes the pair, whose halves are the other way around there, for both.
Source: llama-adapter.cpp, and build_lora_mm, build_lora_mm_id and build_inp_embd of llama-graph.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from modeld.engine.llama.gguf.cursor import GgufError, show
from modeld.engine.llama.gguf.facts import FileKind, kind_of
from modeld.engine.llama.gguf.reader import Header, Tensor
from modeld.engine.llama.gguf.tables import ENCODERS, FLOAT32, STRING

_TEXTS = ("general.type", "general.architecture", "adapter.type")
_ALPHA = "adapter.lora.alpha"
_ACTIVATED = "adapter.alora.invocation_tokens"
_HALVES = (".lora_a", ".lora_b")
_PASSED_OVER = "_norm.weight"
"""llama.cpp does not apply what is added to norms, and says nothing."""
_TYPES = ("F32", "F16", "BF16", "Q8_0")
"""What convert_lora_to_gguf.py writes. llama.cpp cannot multiply by or look up all others."""
_EMBEDDING = "token_embd.weight"
_OUTPUT = "output.weight"
_NO_BASE = "NVFP4"
"""Weights with a scale of their own, alongside which llama.cpp asserts that there is no adapter."""
_DIMENSIONS = 4


class Pair(msgspec.Struct, frozen=True):
    """The two halves of what is added to one weight."""

    a: Tensor
    b: Tensor


class AdapterFacts(msgspec.Struct, frozen=True):
    """What an adapter file holds. `pairs` is by name of the weight; `bytes` the size of all halves."""

    architecture: str
    pairs: Mapping[str, Pair]
    bytes: int


def adapter_facts(header: Header) -> AdapterFacts:
    """Return what is in an adapter file.

    Raises: GgufError when it is no LoRA adapter, or llama.cpp would not survive it.
    """
    if kind_of(header) is not FileKind.ADAPTER:
        raise GgufError("it is no adapter: its general.type is not `adapter`")
    for key in _TEXTS:
        if header.types.get(key) != STRING:
            raise GgufError(f"its metadata are damaged: {key} is no text")
    if header.metadata["adapter.type"] != "lora":
        raise GgufError(
            f"it is an adapter of the type {show(str(header.metadata['adapter.type']))}, not lora"
        )
    if _ACTIVATED in header.types:
        raise GgufError(
            f"it is an activated LoRA ({_ACTIVATED}), which acts only behind certain tokens; "
            "modeld cannot do that"
        )
    alpha = header.metadata.get(_ALPHA, 0.0)
    is_float = header.types.get(_ALPHA, FLOAT32) == FLOAT32
    if not is_float or not isinstance(alpha, float) or not math.isfinite(alpha):
        raise GgufError(f"its metadata are damaged: {_ALPHA} is no finite number of 32 bits")
    pairs = _pairs(header)
    return AdapterFacts(
        architecture=str(header.metadata["general.architecture"]),
        pairs=pairs,
        bytes=sum(pair.a.bytes + pair.b.bytes for pair in pairs.values()),
    )


def check_architecture(adapter: AdapterFacts, architecture: str) -> None:
    """Compare the architectures of adapter and model. Raises: GgufError."""
    if adapter.architecture != architecture:
        raise GgufError(
            f"it is made for models of the architecture {show(adapter.architecture)}, "
            f"and this one is {architecture}"
        )


def check_fit(adapter: AdapterFacts, architecture: str, model: Sequence[Header]) -> None:
    """Compare an adapter with the weights of a model, whose headers are those of all its parts.

    Raises: GgufError with the weight and the shapes.
    """
    check_architecture(adapter, architecture)
    weights = {tensor.name: tensor for part in model for tensor in part.tensors}
    tied = _OUTPUT not in weights and architecture not in ENCODERS
    for name, pair in adapter.pairs.items():
        weight = weights.get(name)
        if weight is None:
            raise GgufError(
                f"it changes {show(name)}, which this model does not have: it is made for another one"
            )
        if name == _EMBEDDING and tied:
            raise GgufError(
                f"it changes {_EMBEDDING}, which also makes the logits of this model; "
                "llama.cpp cannot do that"
            )
        if weight.type == _NO_BASE:
            raise GgufError(f"it changes {show(name)} of the type {_NO_BASE}; llama.cpp cannot do that")
        _check_shapes(name, pair, weight)


def _pairs(header: Header) -> dict[str, Pair]:
    halves = {tensor.name: tensor for tensor in header.tensors if tensor.name.endswith(_HALVES)}
    pairs: dict[str, Pair] = {}
    for tensor in header.tensors:
        if tensor.name not in halves and not tensor.name.endswith(_PASSED_OVER):
            raise GgufError(f"its tensor {show(tensor.name)} is no half of a LoRA pair")
    for name, tensor in halves.items():
        stem = name.removesuffix(_HALVES[0]).removesuffix(_HALVES[1])
        missing = [half for half in _HALVES if stem + half not in halves]
        if missing:
            raise GgufError(f"its tensor {show(name)} has no {missing[0]} alongside it")
        if tensor.type not in _TYPES:
            raise GgufError(
                f"its tensor {show(name)} has the type {tensor.type}; an adapter's may be {', '.join(_TYPES)}"
            )
        pairs[stem] = Pair(halves[stem + _HALVES[0]], halves[stem + _HALVES[1]])
    if not pairs:
        raise GgufError("it has no pairs of LoRA tensors")
    return pairs


def _check_shapes(name: str, pair: Pair, weight: Tensor) -> None:
    """Compare shapes: a is [in, rank], b [rank, out]; of the token embedding [rank, out] and [rank, in]."""
    a, b, base = _shape(pair.a), _shape(pair.b), _shape(weight)
    if name.endswith(_EMBEDDING):
        sound = (a[1], b[1]) == (base[1], base[0]) and a[0] == b[0] > 0
    else:
        sound = (a[0], b[1]) == (base[0], base[1]) and a[1] == b[0] > 0
    if not sound or not a[2:] == b[2:] == base[2:]:
        raise GgufError(
            f"the shapes of its halves for {show(name)}, {list(pair.a.shape)} and {list(pair.b.shape)}, "
            f"do not fit the weight's, {list(weight.shape)}: it is made for another model, or damaged"
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tensor.shape + (1,) * (_DIMENSIONS - len(tensor.shape))
