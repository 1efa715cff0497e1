# SPDX-License-Identifier: GPL-3.0-only
"""Read a GGUF file's kind and its model's facts from the header alone.

Source of the keys: docs/gguf.md of ggml, and src/llama-model.cpp for what is assumed where one is
missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path

from modeld.domain.model import ModelFacts
from modeld.engine.llama.gguf.cursor import GgufError
from modeld.engine.llama.gguf.reader import Header, Tensor, read_header
from modeld.engine.llama.gguf.tables import ENCODERS, FILE_TYPE_GUESSED, FILE_TYPES
from modeld.engine.llama.gguf.validation import check_metadata

__all__ = ["FileKind", "GgufError", "Header", "facts_of", "kind_of", "read_facts", "read_header", "split_of"]

MAX_NAME_CHARACTERS = 128
_MAX_NUMBER = 2**31 - 1
ROW_GROUP = 8
"""llama.cpp repacks a matrix only if its rows come in groups of (at most) so many."""

_POOLINGS = {1: "mean", 2: "cls", 3: "last"}
_RANK = 4
"""Values of `pooling_type` (llama_pooling_type of llama.h)."""

_LOOKED_UP = (
    "token_embd.weight",
    "per_layer_token_embd.weight",
    "position_embd.weight",
    "token_types.weight",
)
"""Tables whose rows are picked by number; they are never multiplied, so never repacked."""


class FileKind(StrEnum):
    """What a GGUF file holds. Only a `MODEL` can be served by itself."""

    MODEL = "model"
    PROJECTOR = "projector"
    """A vision or audio encoder that belongs to a model (mmproj)."""
    ADAPTER = "adapter"
    """A LoRA adapter or a control vector."""
    IMATRIX = "imatrix"
    """Statistics for a quantizer."""


def read_facts(path: Path) -> ModelFacts:
    """Read the facts of a model that is one file.

    Raises: GgufError when it is damaged or no model; OSError when it cannot be read.
    """
    header = read_header(path)
    kind = kind_of(header)
    if kind is not FileKind.MODEL:
        raise GgufError(f"{path.name} holds no model: it is a file of kind {kind}")
    return facts_of([header])


def kind_of(header: Header) -> FileKind:
    """Say what the file holds, by `general.type` and `general.architecture`."""
    declared = _text(header, "general.type").lower()
    architecture = _text(header, "general.architecture").lower()
    if declared in {"mmproj", "projector"} or architecture == "clip":
        return FileKind.PROJECTOR
    if declared == "adapter" or architecture == "controlvector" or "adapter.type" in header.metadata:
        return FileKind.ADAPTER
    if declared == "imatrix" or "imatrix.chunk_count" in header.metadata:
        return FileKind.IMATRIX
    return FileKind.MODEL


def split_of(header: Header) -> tuple[int, int]:
    """Return (index of this part from 0, number of parts); (0, 1) for a file that is not split."""
    return _number(header, "split.no"), max(1, _number(header, "split.count"))


def facts_of(parts: Sequence[Header]) -> ModelFacts:
    """Return the facts of a model from the headers of all its parts, first part first.

    Raises: GgufError when the metadata name no architecture, make no sense, or there are no weights.
    """
    first = parts[0]
    arch = _text(first, "general.architecture")
    if not arch:
        raise GgufError(
            "the metadata have no general.architecture, so llama.cpp cannot tell what model it is"
        )
    tensors = [tensor for part in parts for tensor in part.tensors]
    if not tensors:
        raise GgufError("the file has metadata but no weights (it may hold a vocabulary only)")
    layers = _number(first, f"{arch}.block_count")
    embedding = _number(first, f"{arch}.embedding_length")
    check_metadata(first, arch, layers)
    heads = _numbers(first, f"{arch}.attention.head_count", layers)
    most_heads = max(heads, default=0)
    head_length = embedding // most_heads if most_heads else 0
    kv_heads = _kv_heads(first, arch, layers, heads)
    output = _output(tensors)
    return ModelFacts(
        architecture=arch,
        name=_text(first, "general.name"),
        quant=_quant(first, tensors),
        parameters=sum(tensor.elements for tensor in tensors),
        context_length=_number(first, f"{arch}.context_length"),
        layers=layers,
        embedding_length=embedding,
        heads=most_heads,
        kv_heads=kv_heads,
        key_length=_head_length(first, arch, "key", head_length),
        # Multi-head latent attention keeps one compressed row that serves as key and as value.
        value_length=(
            0
            if f"{arch}.attention.key_length_mla" in first.metadata
            else _head_length(first, arch, "value", head_length)
        ),
        feed_forward_length=_feed_forward(first, arch, layers),
        vocabulary=first.lengths.get("tokenizer.ggml.tokens", 0)
        or _number(first, f"{arch}.vocab_size")
        or (output.rows if output else 0),
        sliding_window=_number(first, f"{arch}.attention.sliding_window"),
        weights_bytes=sum(tensor.bytes for tensor in tensors),
        output_bytes=output.bytes if output else 0,
        matrix_bytes=_matrix_bytes(tensors),
        recurrent_bytes=_recurrent_bytes(first, arch, kv_heads.count(0) or layers),
        pooling=_pooling(first, arch),
        has_chat_template=first.lengths.get("tokenizer.chat_template", 0) > 0,
    )


def _pooling(header: Header, arch: str) -> str:
    """How an embedding model pools, empty for one that generates.

    Raises: GgufError for a reranking model: its output is no embedding.
    """
    kind = _number(header, f"{arch}.pooling_type")
    if kind == _RANK:
        raise GgufError(
            "the file holds a reranking model (pooling_type is rank), which modeld does not serve"
        )
    return _POOLINGS.get(kind, "mean" if arch in ENCODERS else "")


def _quant(header: Header, tensors: Iterable[Tensor]) -> str:
    """The declared file type, or else the type that most bytes of the tensors have."""
    declared = header.metadata.get("general.file_type")
    if isinstance(declared, int) and (name := FILE_TYPES.get(declared & ~FILE_TYPE_GUESSED)):
        return name
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.type] += tensor.bytes
    return weights.most_common(1)[0][0]


def _kv_heads(header: Header, arch: str, layers: int, heads: tuple[int, ...]) -> tuple[int, ...]:
    """KV heads of each layer. A hybrid that gives one number and an interval has 0 in between."""
    found = _numbers(header, f"{arch}.attention.head_count_kv", layers) or heads
    interval = _number(header, f"{arch}.full_attention_interval")
    if interval > 1:
        found = tuple(count if (layer + 1) % interval == 0 else 0 for layer, count in enumerate(found))
    return found


def _head_length(header: Header, arch: str, which: str, default: int) -> int:
    """Elements of one head's key or value: the longer one where windowed layers have their own."""
    full = _number(header, f"{arch}.attention.{which}_length") or default
    return max(full, _number(header, f"{arch}.attention.{which}_length_swa"))


def _feed_forward(header: Header, arch: str, layers: int) -> int:
    """Elements of the widest feed-forward layer that one token passes: dense, or all experts it uses."""
    dense = max(_numbers(header, f"{arch}.feed_forward_length", layers), default=0)
    expert = _number(header, f"{arch}.expert_feed_forward_length")
    return max(dense, expert * _number(header, f"{arch}.expert_used_count"))


def _output(tensors: Iterable[Tensor]) -> Tensor | None:
    """The matrix that makes logits: its own, or the token embedding that serves as one."""
    named = {
        tensor.name: tensor for tensor in tensors if tensor.name in {"output.weight", "token_embd.weight"}
    }
    return named.get("output.weight", named.get("token_embd.weight"))


def _matrix_bytes(tensors: Sequence[Tensor]) -> tuple[tuple[str, int], ...]:
    """Bytes by type of the matrices that are multiplied and have rows in whole groups.

    A tied embedding counts: llama.cpp makes a second tensor of it for the output.
    """
    total: Counter[str] = Counter()
    output = _output(tensors)
    for tensor in tensors:
        looked_up = tensor.name in _LOOKED_UP and tensor is not output
        if tensor.dimensions > 1 and tensor.rows % ROW_GROUP == 0 and not looked_up:
            total[tensor.type] += tensor.bytes
    return tuple(sorted(total.items()))


def _recurrent_bytes(header: Header, arch: str, layers: int) -> int:
    """Recurrent state of one sequence over so many layers, in F32, bytes.

    Mamba's formula (llama_hparams::n_embd_r and n_embd_s): (kernel - 1) x (inner + 2 x groups x
    state) for the convolution and inner x state for the state space.
    """
    kernel, inner, state = (
        _number(header, f"{arch}.ssm.{name}") for name in ("conv_kernel", "inner_size", "state_size")
    )
    if not inner:
        return 0
    groups = _number(header, f"{arch}.ssm.group_count")
    return 4 * layers * (max(0, kernel - 1) * (inner + 2 * groups * state) + inner * state)


def _text(header: Header, key: str) -> str:
    """A string for people, without anything a terminal or a log would obey."""
    value = header.metadata.get(key)
    text = value if isinstance(value, str) else ""
    return "".join(letter for letter in text if letter.isprintable())[:MAX_NAME_CHARACTERS].strip()


def _number(header: Header, key: str) -> int:
    """A whole number that is not negative; 0 when the metadata have none."""
    value = header.metadata.get(key)
    return _sane(key, value) if isinstance(value, int) else 0


def _numbers(header: Header, key: str, layers: int) -> tuple[int, ...]:
    """A number for each layer: the array, or the one number repeated; empty when there is none."""
    value = header.metadata.get(key)
    if isinstance(value, tuple):
        return tuple(_sane(key, number) for number in value[: max(1, layers)])
    number = _number(header, key)
    return (number,) * layers if number else ()


def _sane(key: str, value: int) -> int:
    """Refuse a number that no model has and that would overflow what is computed from it."""
    if value > _MAX_NUMBER:
        raise GgufError(f"the metadata are damaged: {key[:64]!a} is {value}")
    return max(0, value)
