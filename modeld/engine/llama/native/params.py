# SPDX-License-Identifier: GPL-3.0-only
"""Build llama.cpp's parameters for a model and its context."""

from __future__ import annotations

import ctypes
from typing import Any

from modeld.domain.model import LoadOptions
from modeld.engine.llama.footprint import output_rows
from modeld.engine.llama.kv.layout import Layout
from modeld.engine.llama.native.library import lib
from modeld.errors import ModelFailed

GGML_TYPES = {
    "f32": lib.GGML_TYPE_F32,
    "f16": lib.GGML_TYPE_F16,
    "bf16": 30,  # GGML_TYPE_BF16 of ggml.h, which the bindings leave out
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q5_1": lib.GGML_TYPE_Q5_1,
    "q5_0": lib.GGML_TYPE_Q5_0,
    "q4_1": lib.GGML_TYPE_Q4_1,
    "q4_0": lib.GGML_TYPE_Q4_0,
    "iq4_nl": lib.GGML_TYPE_IQ4_NL,
}
"""Types a KV cache may have, as llama.cpp's --cache-type-k spells them."""
_FLOAT_TYPES = frozenset({"f32", "f16", "bf16"})


def model_params(options: LoadOptions) -> Any:
    """Return llama.cpp's parameters for loading a model with these options."""
    params = lib.llama_model_default_params()
    params.n_gpu_layers = -1 if options.gpu_layers is None else options.gpu_layers
    mapped = options.mmap and lib.llama_supports_mmap()
    params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if mapped else lib.LLAMA_LOAD_MODE_NONE
    _place(params, options)
    return params


def _place(params: Any, options: LoadOptions) -> None:
    """Say which GPUs get layers. On a machine without any nothing of it matters, but a number is checked.

    One GPU is named by its place among those that llama.cpp uses; -1 is none of them, so that no buffers are
    made there for layers that are all with the CPU. The parameters keep the array of shares alive.
    """
    if options.tensor_split:
        params.tensor_split = (ctypes.c_float * lib.llama_max_devices())(*options.tensor_split)
        params.split_mode = lib.LLAMA_SPLIT_MODE_LAYER
    elif options.main_gpu is not None and (options.main_gpu < 0 or lib.llama_supports_gpu_offload()):
        params.split_mode = lib.LLAMA_SPLIT_MODE_NONE
        params.main_gpu = options.main_gpu


def context_params(options: LoadOptions, layout: Layout) -> Any:
    """Return llama.cpp's parameters for a context with these options.

    One row of logits a sequence, and some for tokens that are guessed ahead, are all a step needs, and
    keep the compute buffer small; a decode for embeddings has one a token. Windowed layers have as many
    cells as others (`swa_full`): a window alone has lost what the beginning of another prompt would need.
    Raises: ModelFailed for a KV type that llama.cpp does not have.
    """
    if options.kv_type not in GGML_TYPES:
        names = ", ".join(GGML_TYPES)
        raise ModelFailed(
            f"{options.kv_type!r} is no type for a KV cache; set llama_kv_type to one of {names}"
        )
    params = lib.llama_context_default_params()
    params.n_ctx = layout.cells
    params.n_batch = params.n_ubatch = max(options.ubatch, options.slots)
    params.n_seq_max = layout.sequences
    params.n_outputs_max = output_rows(layout.sequences)
    params.swa_full = True
    params.n_threads = params.n_threads_batch = options.threads
    params.flash_attn_type = _flash_attention(options)
    params.type_k = params.type_v = GGML_TYPES[options.kv_type]
    params.kv_unified = layout.unified
    params.no_perf = True
    return params


def _flash_attention(options: LoadOptions) -> int:
    """Choose flash attention where the options leave it open.

    On a CPU it is a cliff at depth: at 3072 tokens, generation 12.7 against 40 tokens a second
    (SmolLM2-135M Q4_0). A quantised V cache works only with it.
    """
    if options.flash_attn is not None:
        enabled = options.flash_attn
    elif options.kv_type not in _FLOAT_TYPES:
        enabled = True
    elif lib.llama_supports_gpu_offload() and options.gpu_layers != 0:
        return lib.LLAMA_FLASH_ATTN_TYPE_AUTO
    else:
        enabled = False
    return lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if enabled else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
