# SPDX-License-Identifier: GPL-3.0-only
"""Writes tiny models whose memory is no plain KV cache: windowed, recurrent, and a hybrid of both kinds."""

from __future__ import annotations

from pathlib import Path

import gguf
from support.tiny_gguf import (
    CONTEXT,
    EMBEDDING,
    FEED_FORWARD,
    HEADS,
    KV_HEADS,
    VOCABULARY,
    add_hyperparameters,
    add_tensor,
    add_vocabulary,
    finish,
    tensors,
)


def write_windowed(path: Path, window: int) -> Path:
    """Write a model of which every second layer attends to the last `window` tokens only."""
    writer = gguf.GGUFWriter(path, "gemma2")
    add_hyperparameters(writer, 2, VOCABULARY)
    writer.add_key_length(EMBEDDING // HEADS)
    writer.add_value_length(EMBEDDING // HEADS)
    writer.add_sliding_window(window)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    add_vocabulary(writer, VOCABULARY)
    for name, shape in tensors(2, VOCABULARY, tied=True):
        add_tensor(writer, name, shape)
    for layer in range(2):
        add_tensor(writer, f"blk.{layer}.post_attention_norm.weight", (EMBEDDING,))
        add_tensor(writer, f"blk.{layer}.post_ffw_norm.weight", (EMBEDDING,))
    return finish(writer, path)


def write_recurrent(path: Path) -> Path:
    """Write a Mamba model: no attention, one state a sequence."""
    inner, state, rank, kernel = 2 * EMBEDDING, 16, 4, 4
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(1)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    add_vocabulary(writer, VOCABULARY)
    for name, shape in (
        ("token_embd.weight", (VOCABULARY, EMBEDDING)),
        ("output_norm.weight", (EMBEDDING,)),
        ("blk.0.attn_norm.weight", (EMBEDDING,)),
        ("blk.0.ssm_in.weight", (2 * inner, EMBEDDING)),
        ("blk.0.ssm_conv1d.weight", (inner, kernel)),
        ("blk.0.ssm_conv1d.bias", (inner,)),
        ("blk.0.ssm_x.weight", (rank + 2 * state, inner)),
        ("blk.0.ssm_dt.weight", (inner, rank)),
        ("blk.0.ssm_dt.bias", (inner,)),
        ("blk.0.ssm_a", (inner, state)),
        ("blk.0.ssm_d", (inner,)),
        ("blk.0.ssm_out.weight", (EMBEDDING, inner)),
    ):
        add_tensor(writer, name, shape)
    return finish(writer, path)


def write_hybrid(path: Path) -> Path:
    """Write an LFM2 model: a layer with a recurrent state (a short convolution), then one with attention."""
    kernel, head, kv = 3, EMBEDDING // HEADS, EMBEDDING // HEADS * KV_HEADS
    writer = gguf.GGUFWriter(path, "lfm2")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(2)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([0, KV_HEADS])
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_shortconv_l_cache(kernel)
    add_vocabulary(writer, VOCABULARY)
    for name, shape in (
        ("token_embd.weight", (VOCABULARY, EMBEDDING)),
        ("token_embd_norm.weight", (EMBEDDING,)),
        ("output.weight", (VOCABULARY, EMBEDDING)),
        ("blk.0.shortconv.conv.weight", (EMBEDDING, kernel)),
        ("blk.0.shortconv.in_proj.weight", (3 * EMBEDDING, EMBEDDING)),
        ("blk.0.shortconv.out_proj.weight", (EMBEDDING, EMBEDDING)),
        ("blk.1.attn_q_norm.weight", (head,)),
        ("blk.1.attn_k_norm.weight", (head,)),
        ("blk.1.attn_q.weight", (EMBEDDING, EMBEDDING)),
        ("blk.1.attn_k.weight", (kv, EMBEDDING)),
        ("blk.1.attn_v.weight", (kv, EMBEDDING)),
        ("blk.1.attn_output.weight", (EMBEDDING, EMBEDDING)),
    ):
        add_tensor(writer, name, shape)
    for layer in range(2):
        for name, shape in (
            ("attn_norm.weight", (EMBEDDING,)),
            ("ffn_norm.weight", (EMBEDDING,)),
            ("ffn_gate.weight", (FEED_FORWARD, EMBEDDING)),
            ("ffn_up.weight", (FEED_FORWARD, EMBEDDING)),
            ("ffn_down.weight", (EMBEDDING, FEED_FORWARD)),
        ):
            add_tensor(writer, f"blk.{layer}.{name}", shape)
    return finish(writer, path)
