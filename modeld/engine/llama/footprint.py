# SPDX-License-Identifier: GPL-3.0-only
"""Estimate by formula a model's memory once it is loaded and its context is full.

It is the growth of the resident set of the process, on a CPU. It counts the deepest moment: a whole
ubatch of prompt at the end of a full context. A young context takes less, because the compute
buffer becomes resident only as deep as it is used; a budget must not be broken by its growing old.

| part     | bytes                                                                                |
|----------|--------------------------------------------------------------------------------------|
| weights  | all tensors (mapped or read), and a copy of the matrices llama.cpp rearranges for    |
|          | the CPU (`CPU_REPACK` in its log; without mmap there is only that copy); all tensors |
|          | of LoRA adapters, which are read and never rearranged                                |
| kv       | cells x sum over layers of KV heads x (key length x K type + value length x V type), |
|          | cells = min(ctx, slots x trained context), in groups of 256 (of a split cache at     |
|          | least one a slot); recurrent state a slot                                            |
| compute  | without flash attention scores and mask in F32, ubatch x cells x (heads + 1) x 4;    |
|          | with it the mask in F32 and F16, ubatch x cells x 6; activations of one layer,       |
|          | ubatch x (4 embedding + 2 feed forward) x 4; of a split cache that stays split,      |
|          | cells are those of a slot; the threads' work area: scores once more in F16, ubatch x |
|          | cells x heads x 2, and what malloc keeps of smaller ones before; what is touched     |
|          | when it serves: 12 bytes a slot and token of the vocabulary (the sampler's           |
|          | candidates), and 1.5 MiB of code and tables                                          |
| overhead | 384 bytes a token of the vocabulary (with its merges), and 5 MiB of tables; a row    |
|          | of logits for each sequence, in slots and retained; in a process of its own 40 MiB   |
|          | of interpreter, libraries and llama.cpp's code more                                  |

A quantised KV cache needs flash attention (llama.cpp refuses it otherwise); where `flash_attn` is
None, it is off else. Windowed layers are counted with a full cache, as llama.cpp allocates them
(`swa_full`). Weights on a GPU are counted like weights in memory, without the copy.

Formulas from llama.cpp (llama-kv-cache.cpp, llama-graph.cpp, ggml-cpu.c, ggml-cpu/repack.cpp) and
fitted to what it logs and takes; SmolLM2-135M, ubatch 512, MiB, measured is the resident set:

| weights, ctx, options      | weights | kv  | compute | overhead | estimate | measured |
|----------------------------|---------|-----|---------|----------|----------|----------|
| Q4_0, 2048                 | 143     | 45  | 70      | 23       | 281      | 273      |
| Q4_0, 8192                 | 143     | 180 | 243     | 23       | 589      | 582      |
| Q8_0, 2048                 | 136     | 45  | 69      | 23       | 273      | 266      |
| Q8_0, 8192                 | 136     | 180 | 243     | 23       | 582      | 576      |
| Q4_0, 8192, flash          | 143     | 180 | 36      | 23       | 382      | 367      |
| Q4_0, 2048, flash, KV q8_0 | 143     | 24  | 18      | 23       | 208      | 203      |
| Q4_0, 2048, without mmap   | 86      | 45  | 70      | 23       | 224      | 216      |
| Q4_0, 2048, ubatch 128     | 143     | 45  | 19      | 23       | 229      | 226      |
| Q4_0, 8192, first ubatch   | 143     | 180 | 243     | 23       | 589      | 364      |
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from modeld.domain.model import MIB, Footprint, Isolation, LoadOptions, ModelFacts
from modeld.engine.llama.gguf.tables import ENCODERS, TENSOR_TYPES

CELL_GROUP = 256
"""llama.cpp rounds the context up to whole groups."""
VOCABULARY_BYTES = 384
"""A token in llama.cpp's tables; measured: 369 with 1 merge a token, 424 with 2."""
FIXED_BYTES = 5 * MIB
PROCESS_BYTES = 40 * MIB
"""A worker process before it loads anything; measured: 41 MiB of proportional set size alone on a machine."""
EMBED_SEQUENCES = 32
"""Inputs of one decode of an embedding model; a divisor of its tokens."""
LEAST_ROWS = 32
"""Rows of logits that a context has at least: an embedding alongside streams takes one a token."""
MOST_RETAINED = 32
"""Sequences that the prefix cache may hold alongside those in slots, where it is on."""

SERVED_BYTES = 3 * MIB // 2
"""Code and tables that the first decodes touch; measured: 1.3 to 1.7 MiB."""
CANDIDATE_BYTES = 12
"""Of a token among those that a sampler chooses from (`llama_token_data`); each slot has its own."""
KEPT_BYTES = 4 * MIB
"""Areas that are freed and smaller than this stay in the heap; `worker.spawn` tells malloc so."""

_REPACKED = {
    "avx2": {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"},
    "avx512f": {"Q2_K"},
    "amx_int8": {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"},
    "asimddp": {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0", "Q1_0"},
}
"""By flag of /proc/cpuinfo: the types llama.cpp's CPU backend rearranges there."""

_TYPES = {entry.name.lower(): entry for entry in TENSOR_TYPES.values()}
_FLOATS = frozenset({"f32", "f16", "bf16"})


def estimate(facts: ModelFacts, options: LoadOptions, *, repacked: frozenset[str] | None = None) -> Footprint:
    """Estimate what the model takes, bytes.

    `repacked`: names of the tensor types that are rearranged (default: those of this machine's CPU).
    """
    types = repacked_types() if repacked is None else repacked
    if facts.pooling:
        return _embedding_model(facts, options, types)
    cells = cells_of(facts, options)
    ubatch = min(max(options.ubatch, options.slots), cells)
    depth = cells if options.kv_unified is not False else cells // options.slots
    retained = 0 if facts.recurrent_bytes or options.kv_unified is False else retained_sequences(options)
    rows = (options.slots + retained) * facts.vocabulary * 4
    return Footprint(
        weights=_weights(facts, options, types),
        kv=_kv(facts, options, cells),
        compute=_compute(facts, options, ubatch=ubatch, depth=depth) + served_bytes(facts, options),
        overhead=_overhead(facts, options) + rows,
    )


def _embedding_model(facts: ModelFacts, options: LoadOptions, types: frozenset[str]) -> Footprint:
    """Estimate an embedding model: a decode of whole inputs. Encoders have no KV cache."""
    tokens = embed_tokens(options)
    cells = -(-tokens // CELL_GROUP) * CELL_GROUP
    activations = tokens * (6 * facts.embedding_length + 2 * facts.feed_forward_length) * 4
    scores = tokens * tokens * (6 if uses_flash_attention(options) else 6 * facts.heads + 8)
    return Footprint(
        weights=_weights(facts, options, types),
        kv=0 if facts.architecture in ENCODERS else _kv(facts, options, cells),
        compute=embedding_rows(facts, options) + activations + scores,
        overhead=_overhead(facts, options),
    )


def served_bytes(facts: ModelFacts, options: LoadOptions) -> int:
    """Return what becomes resident with the first requests, alongside the buffers of graphs."""
    slots = 0 if facts.pooling else options.slots
    return SERVED_BYTES + slots * facts.vocabulary * CANDIDATE_BYTES


def kept_bytes(step: int, largest: int) -> int:
    """Return what malloc keeps of a work area that grew to `largest` bytes, from `step` on and by as much.

    Each is allocated before the one before it is freed, so those that lie in the heap leave holes.
    """
    return min(largest, KEPT_BYTES) if step < min(largest, KEPT_BYTES) else 0


def _overhead(facts: ModelFacts, options: LoadOptions) -> int:
    process = PROCESS_BYTES if options.isolation is Isolation.PROCESS else 0
    return facts.vocabulary * VOCABULARY_BYTES + FIXED_BYTES + process


def embedding_rows(facts: ModelFacts, options: LoadOptions) -> int:
    """Return what an embedding model takes for the results of a decode, bytes, from the first full one on.

    llama.cpp 0.3.36 keeps room for the logits of each token too, although nobody asks for them.
    """
    return embed_tokens(options) * (facts.vocabulary + 2 * facts.embedding_length) * 4


def embed_tokens(options: LoadOptions) -> int:
    """Return the tokens of one decode of an embedding model: `ubatch` (or `ctx`), in whole groups."""
    return -(-min(options.ubatch, options.ctx) // EMBED_SEQUENCES) * EMBED_SEQUENCES


def output_rows(sequences: int) -> int:
    """Return how many tokens of a batch may have their logits computed."""
    return max(sequences, LEAST_ROWS)


def cells_of(facts: ModelFacts, options: LoadOptions) -> int:
    """Return the KV cells that llama.cpp allocates for these options."""
    cells = min(options.ctx, options.slots * facts.context_length) if facts.context_length else options.ctx
    cells = -(-cells // CELL_GROUP) * CELL_GROUP
    return cells if options.kv_unified is not False else max(cells, options.slots * CELL_GROUP)


def retained_sequences(options: LoadOptions) -> int:
    """Return how many sequences a context has alongside those in slots; each costs a row of logits."""
    return 0 if options.prefix_cells == 0 else MOST_RETAINED


def uses_flash_attention(options: LoadOptions) -> bool:
    """Say whether the engine turns flash attention on, on a CPU."""
    if options.flash_attn is None:
        return options.kv_type not in _FLOATS
    return options.flash_attn


@cache
def repacked_types(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the tensor types that llama.cpp keeps a rearranged copy of on this CPU.

    Supposes a library that was built for this CPU; one built for less takes less.
    """
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    flags = set(text.split())
    return frozenset(name for flag, names in _REPACKED.items() if flag in flags for name in names)


def _weights(facts: ModelFacts, options: LoadOptions, types: frozenset[str]) -> int:
    own = facts.weights_bytes + sum(adapter.bytes for adapter in options.lora)
    if not options.mmap or options.gpu_layers:
        return own
    return own + sum(size for name, size in facts.matrix_bytes if name in types)


def _kv(facts: ModelFacts, options: LoadOptions, cells: int) -> int:
    """Bytes of the cache. An unknown type counts as F32: llama.cpp will refuse it."""
    kv_type = _TYPES.get(options.kv_type, _TYPES["f32"])
    elements = cells * sum(facts.kv_heads) * (facts.key_length + facts.value_length)
    return elements // kv_type.block * kv_type.size + options.slots * facts.recurrent_bytes


def _compute(facts: ModelFacts, options: LoadOptions, *, ubatch: int, depth: int) -> int:
    """Bytes of a graph's buffers and of its work area; `depth`: cells that a token attends to."""
    activations = ubatch * (4 * facts.embedding_length + 2 * facts.feed_forward_length) * 4
    if not any(facts.kv_heads):
        return activations
    if uses_flash_attention(options):
        return activations + ubatch * depth * 6
    scores = ubatch * depth * (facts.heads + 1) * 4
    if options.kv_type == "f32":
        return activations + scores
    work, step = (ubatch * cells * facts.heads * 2 for cells in (depth, min(ubatch, depth)))
    return activations + scores + work + kept_bytes(step, work)
