# SPDX-License-Identifier: GPL-3.0-only
"""OpenAI's API: parse bodies, render objects and server-sent events. Pure.

`common` has what its bodies and orders share, and the error format; `chat`, `completions`, `responses`,
`embeddings` and `models` are the endpoints, `*_render` the answers of the larger ones.
docs/compatibility.md tells what differs.
"""

from modeld.dialects.openai.chat import ChatBody, parse_chat
from modeld.dialects.openai.chat_render import ChatAnswer, ChatRenderer
from modeld.dialects.openai.common import OpenAIError, ParsedRequest, effective_end, error_answer
from modeld.dialects.openai.completions import (
    CompletionAnswer,
    CompletionBody,
    OpenAICompletionRenderer,
    parse_completion,
)
from modeld.dialects.openai.embeddings import (
    EmbeddingsAnswer,
    EmbeddingsBody,
    OpenAIEmbeddingsRenderer,
    ParsedEmbeddings,
    parse_embeddings,
)
from modeld.dialects.openai.models import OpenAIModel, OpenAIModels, models_list, one_model
from modeld.dialects.openai.render import SSE_TYPE, ChoiceEvent, ChoiceRenderer
from modeld.dialects.openai.responses import ParsedResponse, ResponseBody, ResponsesBody, parse_response
from modeld.dialects.openai.responses_render import ResponseRenderer

__all__ = [
    "SSE_TYPE",
    "ChatAnswer",
    "ChatBody",
    "ChatRenderer",
    "ChoiceEvent",
    "ChoiceRenderer",
    "CompletionAnswer",
    "CompletionBody",
    "EmbeddingsAnswer",
    "EmbeddingsBody",
    "OpenAICompletionRenderer",
    "OpenAIEmbeddingsRenderer",
    "OpenAIError",
    "OpenAIModel",
    "OpenAIModels",
    "ParsedEmbeddings",
    "ParsedRequest",
    "ParsedResponse",
    "ResponseBody",
    "ResponseRenderer",
    "ResponsesBody",
    "effective_end",
    "error_answer",
    "models_list",
    "one_model",
    "parse_chat",
    "parse_completion",
    "parse_embeddings",
    "parse_response",
]
