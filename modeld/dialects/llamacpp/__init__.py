# SPDX-License-Identifier: GPL-3.0-only
"""The API of llama.cpp's own server, as far as a server of many models can mean it. Pure.

`wire` holds what clients send, `parse` makes orders of it, `render` writes text, vectors and errors,
and `listing` tells of the models. `/tokenize`, `/detokenize` and `/apply-template` are the native ones.
"""

from modeld.dialects.llamacpp.answer import LlamaCompletion, LlamaError
from modeld.dialects.llamacpp.listing import (
    LlamaDone,
    LlamaHealth,
    LlamaProps,
    LlamaSlot,
    props,
    slots,
)
from modeld.dialects.llamacpp.parse import Completion, parse_completion, parse_embedding, parse_model
from modeld.dialects.llamacpp.render import (
    CompletionRenderer,
    LlamaEmbeddingRenderer,
    error_answer,
    unavailable,
)
from modeld.dialects.llamacpp.wire import LlamaCompletionBody, LlamaEmbeddingBody, LlamaModelBody

__all__ = [
    "Completion",
    "CompletionRenderer",
    "LlamaCompletion",
    "LlamaCompletionBody",
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
