# SPDX-License-Identifier: GPL-3.0-only
"""The native API: parse bodies, render lines and bodies. Pure.

`wire` holds the values as they are written, `infer` turns a body into an `InferOrder`, `render` turns
the events of one request into lines; `embed` does both for vectors and
`vocabulary` for what needs no slot; `listing` tells of the models and of what the daemon does, and
`control` is what operators pull.
docs/api.md is the contract.
"""

from modeld.dialects.native.control import (
    LoadBody,
    OperationsBody,
    PinBody,
    PlanBody,
    SwitchBody,
    UnloadBody,
    operations_body,
    parse_load,
    parse_pin,
    parse_plan,
    parse_switch,
    parse_unload,
    parse_wait,
)
from modeld.dialects.native.embed import EmbedAnswer, EmbedBody, EmbedRenderer, parse_embed
from modeld.dialects.native.infer import InferOrder, parse_infer
from modeld.dialects.native.listing import (
    SSE_BEGIN,
    SSE_KEEPALIVE,
    SSE_TYPE,
    ModelBody,
    ModelsBody,
    Show,
    as_line,
    as_sse,
    model_body,
    models_body,
    shown,
)
from modeld.dialects.native.render import InferRenderer, error_body
from modeld.dialects.native.vocabulary import (
    ContentBody,
    DetokenizeBody,
    PromptBody,
    TemplateBody,
    TokenizeBody,
    TokensBody,
    parse_detokenize,
    parse_template,
    parse_tokenize,
    vocabulary_answer,
)
from modeld.dialects.native.wire import ErrorBody, FinalLine, InferBody, LoadingLine, QueuedLine, TokenLine

__all__ = [
    "SSE_BEGIN",
    "SSE_KEEPALIVE",
    "SSE_TYPE",
    "ContentBody",
    "DetokenizeBody",
    "EmbedAnswer",
    "EmbedBody",
    "EmbedRenderer",
    "ErrorBody",
    "FinalLine",
    "InferBody",
    "InferOrder",
    "InferRenderer",
    "LoadBody",
    "LoadingLine",
    "ModelBody",
    "ModelsBody",
    "OperationsBody",
    "PinBody",
    "PlanBody",
    "PromptBody",
    "QueuedLine",
    "Show",
    "SwitchBody",
    "TemplateBody",
    "TokenLine",
    "TokenizeBody",
    "TokensBody",
    "UnloadBody",
    "as_line",
    "as_sse",
    "error_body",
    "model_body",
    "models_body",
    "operations_body",
    "parse_detokenize",
    "parse_embed",
    "parse_infer",
    "parse_load",
    "parse_pin",
    "parse_plan",
    "parse_switch",
    "parse_template",
    "parse_tokenize",
    "parse_unload",
    "parse_wait",
    "shown",
    "vocabulary_answer",
]
