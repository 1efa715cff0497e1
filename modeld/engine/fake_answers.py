# SPDX-License-Identifier: GPL-3.0-only
"""What a fake engine answers: words, vectors and log-probabilities that follow from the question alone."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence

from modeld.core.events import (
    AsideAnswer,
    Detokenized,
    Logprobs,
    Templated,
    Tokenized,
    TokenLogprob,
)
from modeld.core.request import (
    Aside,
    DetokenizeRequest,
    GenerateRequest,
    TemplateRequest,
    TokenizeRequest,
)
from modeld.errors import (
    InvalidRequest,
)

BYTES = 256


def words_of(given: str | tuple[int, ...]) -> Sequence[object]:
    """Return the tokens of an input: its words, or the ids that it is made of."""
    return given.split() or [given] if isinstance(given, str) else given


def vector_of(given: str | tuple[int, ...]) -> bytes:
    """Four numbers of length 1 together, the same ones for the same input."""
    seed = zlib.crc32(repr(given).encode())
    numbers = [(seed >> shift & 255) + 1 for shift in (0, 8, 16, 24)]
    return struct.pack("<4f", *(number / math.hypot(*numbers) for number in numbers))


def answer_to(request: Aside) -> AsideAnswer:
    """Answer what needs no slot: a byte is a token there. Raises: InvalidRequest."""
    match request:
        case TokenizeRequest(content=content, with_pieces=with_pieces):
            data = content.encode()
            return Tokenized(tuple(data), tuple(bytes([byte]) for byte in data) if with_pieces else None)
        case DetokenizeRequest(tokens=tokens):
            for token in tokens:
                if not 0 <= token < BYTES:
                    raise InvalidRequest(
                        f"`tokens` has a token {token}, but the vocabulary ends at {BYTES - 1}"
                    )
            return Detokenized(bytes(tokens))
        case TemplateRequest(messages=messages, count=count):
            prompt = " ".join(message.content for message in messages)
            return Templated(prompt, len(prompt.split()) if count else None)


def logprobs_of(request: GenerateRequest, text: str) -> tuple[Logprobs, ...]:
    """Return log-probabilities of a token, if the request asks for them: always the same."""
    if request.logprobs is None:
        return ()
    chosen = TokenLogprob(len(text), text.encode(), -0.125)
    return (Logprobs(chosen=chosen, top=(chosen,) * min(1, request.logprobs)),)
