# SPDX-License-Identifier: GPL-3.0-only
"""The native API: bodies of `POST /infer` in, lines out. Pure.

`wire` holds the values as they are written, `parse` turns a body into a `Generate`, `render` turns
the events of one request into lines, `listing` tells of the models. docs/api.md is the contract.
"""

from modeld.dialects.native.listing import ModelsBody, models_body
from modeld.dialects.native.parse import Generate, parse
from modeld.dialects.native.render import Renderer, error_body, shows_text
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
    "ErrorBody",
    "Generate",
    "InferBody",
    "LoadingLine",
    "ModelsBody",
    "QueuedLine",
    "Renderer",
    "TokenLine",
    "error_body",
    "models_body",
    "parse",
    "shows_text",
]
