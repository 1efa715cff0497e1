# SPDX-License-Identifier: GPL-3.0-only
"""Writes small valid GGUF files: a model, an adapter, a projector, the parts of a split model.

They are written by the `gguf` package, so that our own reader is not judged by itself. The model is
a llama with random weights: sound enough for llama.cpp to load it in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

LAYERS = 1
EMBEDDING = 64
HEADS = 4
KV_HEADS = 2
FEED_FORWARD = 128
CONTEXT = 256
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
VOCABULARY = 320
BERT_CONTEXT = 128
BERT_WORDS = ["a", "b", "c", "hello", "world", "cat", "dog", *(f"w{number}" for number in range(88))]
TENSORS = 2 + 9 * LAYERS + 1

Extra = Mapping[str, int | float | str | bool | list[int]]


def write_model(
    path: Path,
    *,
    architecture: str = "llama",
    name: str | None = "Tiny",
    vocabulary: int = VOCABULARY,
    file_type: int | None = 0,
    quant: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    chat_template: str | None = "{% for m in messages %}{{ m.content }}{% endfor %}",
    tied: bool = False,
    extra: Extra | None = None,
    split: tuple[int, int] | None = None,
    layers: int = LAYERS,
    context: int = CONTEXT,
    controls: Sequence[str] = (),
) -> Path:
    """Write a whole model. `split` is (part from 0, parts) and only marks the file.

    `controls` are further control tokens: the last of the vocabulary.
    """
    writer = gguf.GGUFWriter(path, architecture)
    if name is not None:
        writer.add_name(name)
    if file_type is not None:
        writer.add_file_type(file_type)
    if split is not None:
        _add_split(writer, *split)
    add_hyperparameters(writer, layers, vocabulary, context)
    add_vocabulary(writer, vocabulary, controls)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for key, value in (extra or {}).items():
        _add(writer, key, value)
    for tensor_name, shape in tensors(layers, vocabulary, tied=tied):
        add_tensor(writer, tensor_name, shape, quant)
    return finish(writer, path)


def write_bert(path: Path, *, pooling: int | None = 1, more_words: int = 0) -> Path:
    """Write an embedding model: attention looks both ways, no KV cache, words as tokens; two layers."""
    known = [*BERT_WORDS, *(f"x{number}" for number in range(more_words))]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"\u2581{word}" for word in known)]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("Tiny embedder")
    writer.add_context_length(BERT_CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(2)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    kinds = [gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * len(known)
    writer.add_token_types(kinds)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    writer.add_mask_token_id(4)
    for name, shape in (
        ("token_embd.weight", (len(words), EMBEDDING)),
        ("position_embd.weight", (BERT_CONTEXT, EMBEDDING)),
        ("token_types.weight", (2, EMBEDDING)),
        ("token_embd_norm.weight", (EMBEDDING,)),
        ("token_embd_norm.bias", (EMBEDDING,)),
    ):
        add_tensor(writer, name, shape)
    for layer in range(2):
        for name, shape in (
            ("attn_q", (EMBEDDING, EMBEDDING)),
            ("attn_k", (EMBEDDING, EMBEDDING)),
            ("attn_v", (EMBEDDING, EMBEDDING)),
            ("attn_output", (EMBEDDING, EMBEDDING)),
            ("ffn_up", (FEED_FORWARD, EMBEDDING)),
            ("ffn_down", (EMBEDDING, FEED_FORWARD)),
        ):
            add_tensor(writer, f"blk.{layer}.{name}.weight", shape)
            add_tensor(writer, f"blk.{layer}.{name}.bias", (shape[0],))
        for name in ("attn_output_norm", "layer_output_norm"):
            add_tensor(writer, f"blk.{layer}.{name}.weight", (EMBEDDING,))
            add_tensor(writer, f"blk.{layer}.{name}.bias", (EMBEDDING,))
    return finish(writer, path)


def write_split(folder: Path, stem: str, parts: int, *, without: Sequence[int] = ()) -> list[Path]:
    """Write a model in parts: the first has the metadata, each has its share of the tensors.

    Parts in `without` (from 1) are left out. Returns the paths that were written.
    """
    shapes = tensors(LAYERS, VOCABULARY, tied=False)
    written = []
    for part in range(1, parts + 1):
        if part in without:
            continue
        path = folder / f"{stem}-{part:05d}-of-{parts:05d}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        _add_split(writer, part - 1, parts)
        if part == 1:
            writer.add_name("Tiny in parts")
            writer.add_file_type(0)
            add_hyperparameters(writer, LAYERS, VOCABULARY)
            add_vocabulary(writer, VOCABULARY)
        for tensor_name, shape in shapes[part - 1 :: parts]:
            add_tensor(writer, tensor_name, shape, gguf.GGMLQuantizationType.F32)
        written.append(finish(writer, path))
    return written


def write_projector(path: Path) -> Path:
    """Write what llama.cpp calls an mmproj file: a vision encoder without a language model."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    add_tensor(writer, "mm.0.weight", (32, 32), gguf.GGMLQuantizationType.F32)
    return finish(writer, path)


def write_adapter(path: Path) -> Path:
    """Write a LoRA adapter."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    add_tensor(writer, "blk.0.attn_q.weight.lora_a", (8, 64), gguf.GGMLQuantizationType.F32)
    return finish(writer, path)


def write_large_vocabulary(path: Path, tokens: int) -> Path:
    """Write a model with so many tokens, as many scores and types, and twice as many merges."""
    writer = gguf.GGUFWriter(path, "llama")
    add_hyperparameters(writer, LAYERS, tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{number}" for number in range(tokens)])
    writer.add_token_scores([0.0] * tokens)
    writer.add_token_types([1] * tokens)
    writer.add_token_merges([f"left{number} right{number}" for number in range(2 * tokens)])
    add_tensor(writer, "token_embd.weight", (tokens, 32), gguf.GGMLQuantizationType.Q4_0)
    return finish(writer, path)


def _add_split(writer: gguf.GGUFWriter, part: int, parts: int) -> None:
    writer.add_uint16("split.no", part)
    writer.add_uint16("split.count", parts)
    writer.add_int32("split.tensors.count", TENSORS)


def add_hyperparameters(
    writer: gguf.GGUFWriter, layers: int, vocabulary: int, context: int = CONTEXT
) -> None:
    """Add the shape of a llama."""
    writer.add_context_length(context)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: int, controls: Sequence[str] = ()) -> None:
    """Add a token for each byte, and words."""
    words = [f"w{number}" for number in range(vocabulary - 3 - len(BYTE_TOKENS) - len(controls))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *BYTE_TOKENS, *words, *controls])
    writer.add_token_scores([0.0] * vocabulary)
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * len(BYTE_TOKENS) + [gguf.TokenType.NORMAL] * len(words)
    kinds += [gguf.TokenType.CONTROL] * len(controls)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def tensors(layers: int, vocabulary: int, *, tied: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of what a llama consists of."""
    kv = EMBEDDING // HEADS * KV_HEADS
    found: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (vocabulary, EMBEDDING)),
        ("output_norm.weight", (EMBEDDING,)),
    ]
    for layer in range(layers):
        found += [
            (f"blk.{layer}.attn_norm.weight", (EMBEDDING,)),
            (f"blk.{layer}.attn_q.weight", (EMBEDDING, EMBEDDING)),
            (f"blk.{layer}.attn_k.weight", (kv, EMBEDDING)),
            (f"blk.{layer}.attn_v.weight", (kv, EMBEDDING)),
            (f"blk.{layer}.attn_output.weight", (EMBEDDING, EMBEDDING)),
            (f"blk.{layer}.ffn_norm.weight", (EMBEDDING,)),
            (f"blk.{layer}.ffn_gate.weight", (FEED_FORWARD, EMBEDDING)),
            (f"blk.{layer}.ffn_up.weight", (FEED_FORWARD, EMBEDDING)),
            (f"blk.{layer}.ffn_down.weight", (EMBEDDING, FEED_FORWARD)),
        ]
    return found if tied else [*found, ("output.weight", (vocabulary, EMBEDDING))]


def add_tensor(
    writer: gguf.GGUFWriter,
    name: str,
    shape: tuple[int, ...],
    quant: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> None:
    """Add a tensor of random numbers, the same ones every time; `shape` is numpy's, last fastest."""
    generator = np.random.default_rng(len(name) + sum(shape))
    if name.endswith("norm.weight"):
        writer.add_tensor(name, np.ones(shape, dtype=np.float32))
        return
    values = generator.standard_normal(shape, dtype=np.float32) * 0.05
    if quant is gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quantize(values, quant), raw_dtype=quant)


def _add(writer: gguf.GGUFWriter, key: str, value: float | str | list[int]) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    """Write what was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
