# SPDX-License-Identifier: GPL-3.0-only
"""OpenAI's API: bodies in, objects and server-sent events out. Pure.

`wire` has what its bodies share, `ask` turns such into orders; `chat`, `completion` and `embed` are the
endpoints, `render_*` their answers; `errors` is the envelope. docs/compatibility.md tells what differs.
"""

from modeld.dialects.openai.ask import Asked
from modeld.dialects.openai.chat import ChatBody, parse_chat
from modeld.dialects.openai.completion import CompletionBody, parse_completion
from modeld.dialects.openai.embed import (
    AskedVectors,
    EmbeddingsAnswer,
    EmbeddingsBody,
    VectorRenderer,
    parse_embeddings,
)
from modeld.dialects.openai.errors import as_seen, error_answer
from modeld.dialects.openai.listing import OpenAIModel, OpenAIModels, models_list, one_model
from modeld.dialects.openai.render import SSE_TYPE, ChoiceEvent, ChoiceRenderer
from modeld.dialects.openai.render_chat import ChatAnswer, ChatRenderer
from modeld.dialects.openai.render_completion import CompletionAnswer, CompletionRenderer
from modeld.dialects.openai.render_responses import ResponseRenderer
from modeld.dialects.openai.response_wire import ResponseBody
from modeld.dialects.openai.responses import AskedResponse, ResponsesBody, parse_response
from modeld.dialects.openai.wire import OpenAIError

__all__ = [
    "SSE_TYPE",
    "Asked",
    "AskedResponse",
    "AskedVectors",
    "ChatAnswer",
    "ChatBody",
    "ChatRenderer",
    "ChoiceEvent",
    "ChoiceRenderer",
    "CompletionAnswer",
    "CompletionBody",
    "CompletionRenderer",
    "EmbeddingsAnswer",
    "EmbeddingsBody",
    "OpenAIError",
    "OpenAIModel",
    "OpenAIModels",
    "ResponseBody",
    "ResponseRenderer",
    "ResponsesBody",
    "VectorRenderer",
    "as_seen",
    "error_answer",
    "models_list",
    "one_model",
    "parse_chat",
    "parse_completion",
    "parse_embeddings",
    "parse_response",
]
