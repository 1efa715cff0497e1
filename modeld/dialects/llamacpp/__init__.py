# SPDX-License-Identifier: GPL-3.0-only
"""The API of llama.cpp's own server, as far as it applies to many models. Pure.

`completion` holds what clients send and makes orders of it, `render` writes text, vectors and errors,
and `listing` tells of the models. `/tokenize`, `/detokenize` and `/apply-template` are the native ones.
"""

from modeld.dialects.llamacpp.completion import (
    LlamaCompletionBody,
    LlamaCompletionOrder,
    LlamaEmbeddingBody,
    LlamaModelBody,
    parse_completion,
    parse_embedding,
    parse_model,
)
from modeld.dialects.llamacpp.listing import LlamaDone, LlamaHealth, LlamaProps, LlamaSlot, props, slots
from modeld.dialects.llamacpp.render import (
    LlamaCompletion,
    LlamaCompletionRenderer,
    LlamaEmbeddingRenderer,
    LlamaError,
    error_answer,
    unavailable,
)

__all__ = [
    "LlamaCompletion",
    "LlamaCompletionBody",
    "LlamaCompletionOrder",
    "LlamaCompletionRenderer",
    "LlamaDone",
    "LlamaEmbeddingBody",
    "LlamaEmbeddingRenderer",
    "LlamaError",
    "LlamaHealth",
    "LlamaModelBody",
    "LlamaProps",
    "LlamaSlot",
    "error_answer",
    "parse_completion",
    "parse_embedding",
    "parse_model",
    "props",
    "slots",
    "unavailable",
]
