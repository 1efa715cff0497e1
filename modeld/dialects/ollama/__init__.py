# SPDX-License-Identifier: GPL-3.0-only
"""Ollama's API: parse bodies, render lines and bodies. Pure.

`common` holds what clients send, `parse` turns it into what is asked for, `gotemplate`
renders a template of theirs, `render` writes text, `embed` does both for vectors, and `listing`
tells of the models. docs/compatibility.md says what differs from the original.
"""

from modeld.dialects.ollama.common import (
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
    OllamaGenerateBody,
    OllamaPullBody,
    OllamaShowBody,
)
from modeld.dialects.ollama.embed import (
    OllamaEmbedAnswer,
    OllamaEmbeddingsAnswer,
    OllamaEmbedRenderer,
    ParsedEmbed,
    parse_embed,
    parse_embeddings,
)
from modeld.dialects.ollama.listing import (
    OllamaProgress,
    OllamaPs,
    OllamaShow,
    OllamaTags,
    OllamaVersion,
    find,
    parse_pull,
    parse_show,
    rfc3339,
    running,
    show,
    tags,
)
from modeld.dialects.ollama.parse import (
    OllamaRequestTerms,
    ParsedOllama,
    order_of,
    parse_chat,
    parse_generate,
)
from modeld.dialects.ollama.render import OllamaAnswer, OllamaError, OllamaTextRenderer, error_answer

__all__ = [
    "OllamaAnswer",
    "OllamaChatBody",
    "OllamaEmbedAnswer",
    "OllamaEmbedBody",
    "OllamaEmbedRenderer",
    "OllamaEmbeddingsAnswer",
    "OllamaEmbeddingsBody",
    "OllamaError",
    "OllamaGenerateBody",
    "OllamaProgress",
    "OllamaPs",
    "OllamaPullBody",
    "OllamaRequestTerms",
    "OllamaShow",
    "OllamaShowBody",
    "OllamaTags",
    "OllamaTextRenderer",
    "OllamaVersion",
    "ParsedEmbed",
    "ParsedOllama",
    "error_answer",
    "find",
    "order_of",
    "parse_chat",
    "parse_embed",
    "parse_embeddings",
    "parse_generate",
    "parse_pull",
    "parse_show",
    "rfc3339",
    "running",
    "show",
    "tags",
]
