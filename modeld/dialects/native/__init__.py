# SPDX-License-Identifier: GPL-3.0-only
"""The native API: bodies in, lines and bodies out. Pure.

`wire` holds the values as they are written, `parse` turns a body into a `Generate`, `render` turns
the events of one request into lines; `embed` does both for vectors and
`vocabulary` for what needs no slot; `listing` tells of the models. docs/api.md is the contract.
"""

from modeld.dialects.native.embed import EmbedAnswer, EmbedBody, EmbedRenderer, parse_embed
from modeld.dialects.native.listing import ModelsBody, models_body
from modeld.dialects.native.parse import Generate, parse
from modeld.dialects.native.render import Renderer, error_body
from modeld.dialects.native.vocabulary import (
    ContentBody,
    DetokenizeBody,
    PromptBody,
    TemplateBody,
    TokenizeBody,
    TokensBody,
    aside_body,
    parse_detokenize,
    parse_template,
    parse_tokenize,
)
from modeld.dialects.native.wire import (
    Answer,
    ErrorBody,
    InferBody,
    LoadingLine,
    QueuedLine,
    TokenLine,
)

__all__ = [
    "Answer",
    "ContentBody",
    "DetokenizeBody",
    "EmbedAnswer",
    "EmbedBody",
    "EmbedRenderer",
    "ErrorBody",
    "Generate",
    "InferBody",
    "LoadingLine",
    "ModelsBody",
    "PromptBody",
    "QueuedLine",
    "Renderer",
    "TemplateBody",
    "TokenLine",
    "TokenizeBody",
    "TokensBody",
    "aside_body",
    "error_body",
    "models_body",
    "parse",
    "parse_detokenize",
    "parse_embed",
    "parse_template",
    "parse_tokenize",
]
