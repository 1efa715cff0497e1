# SPDX-License-Identifier: GPL-3.0-only
"""Answers what needs the vocabulary and the chat template only: no slot, no cells, no decode."""

from __future__ import annotations

from modeld.core.events import AsideAnswer, Detokenized, Templated, Tokenized
from modeld.core.request import Aside, DetokenizeRequest, TemplateRequest, TokenizeRequest
from modeld.engine.llama.renderer import Renderer
from modeld.engine.llama.vocab import Vocab


def answer(request: Aside, vocab: Vocab, template: Renderer) -> AsideAnswer:
    """Answer a request that needs no slot.

    Raises: InvalidRequest for a token that the vocabulary does not have, and what the template objects to.
    """
    match request:
        case TokenizeRequest(content=content, add_special=add, parse_special=parse):
            tokens = tuple(vocab.tokenize(content, add_special=add, parse_special=parse).tolist())
            pieces = tuple(vocab.spelling(token) for token in tokens) if request.with_pieces else None
            return Tokenized(tokens, pieces)
        case DetokenizeRequest(tokens=tokens):
            vocab.check(tokens, "tokens")
            return Detokenized(vocab.detokenize(tokens))
        case TemplateRequest(messages=messages, tools=tools):
            parts = template.render(messages, tools)
            count = len(vocab.tokenize_parts(parts)) if request.count else None
            return Templated("".join(parts), count)
