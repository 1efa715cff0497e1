# SPDX-License-Identifier: GPL-3.0-only
"""What a request will cost, in tokens, as far as one can tell before its prompt was read. Pure."""

from __future__ import annotations

from modeld.core.request import AS_MANY_AS_FIT, DetokenizeRequest, EmbedRequest, GenerateRequest, Request

CHARACTERS_PER_TOKEN = 4
"""Of usual English text in usual vocabularies."""


def estimated_tokens(request: Request, context: int, share: int = 0) -> int:
    """Return the tokens of prompt and answer; at most the model's context (0: unknown), at least 1.

    An answer counts with all it may have: how long it gets, nobody knows. One without a bound fills
    `share`, the KV cells of a slot.
    """
    match request:
        case GenerateRequest():
            texts = (request.prompt or "", *(message.content for message in request.messages))
            prompt = sum(map(len, texts)) // CHARACTERS_PER_TOKEN + len(request.prompt_tokens)
            bound = request.max_tokens
            tokens = max(prompt, share) if bound == AS_MANY_AS_FIT else prompt + bound
            tokens = min(tokens, context) if context else tokens
        case EmbedRequest():
            tokens = sum(
                len(text) // CHARACTERS_PER_TOKEN if isinstance(text, str) else len(text)
                for text in request.inputs
            )
        case DetokenizeRequest():
            tokens = len(request.tokens)
        case _:
            tokens = 0
    return max(1, tokens)
