# SPDX-License-Identifier: GPL-3.0-only
"""Parse the script of a fake engine: durations and faults.

A script is a list of `key=value`, separated by blanks:

    load_s=0       seconds a load takes              step_s=0      seconds of one step
    prefill_s=0    seconds per prompt token          chunk=512     prompt tokens of one step
    context=8192   tokens it was "trained" with      eos_after=0   answers end after so many tokens
    fail_load=     the load fails with these words (_ is a blank)
    die_at=0       the engine breaks in this decode  stall_at=0    this one ends only by `interrupt`
    abort_at=0     the whole process aborts in it    abort_load=0  it aborts in the load (1)
    spam=0         lines on standard error a step
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence

import msgspec

from modeld.domain.request import (
    DetokenizeRequest,
    GenerateRequest,
    TemplateRequest,
    TokenizeRequest,
    VocabularyRequest,
)
from modeld.domain.request_events import (
    Detokenized,
    Logprobs,
    Templated,
    Tokenized,
    TokenLogprob,
    VocabularyAnswer,
)
from modeld.errors import InvalidRequest


class FakeScript(msgspec.Struct, frozen=True, kw_only=True):
    """How the fake engine behaves; see the module's docstring."""

    load_s: float = 0.0
    step_s: float = 0.0
    prefill_s: float = 0.0
    chunk: int = 512
    context: int = 8192
    eos_after: int = 0
    fail_load: str = ""
    die_at: int = 0
    stall_at: int = 0
    abort_at: int = 0
    abort_load: int = 0
    spam: int = 0


def parse_script(text: str) -> FakeScript:
    """Read a script. Raises: ValueError that names the bad part."""
    parts = {key: value for key, _, value in (part.partition("=") for part in text.split())}
    unknown = parts.keys() - set(FakeScript.__struct_fields__)
    if unknown:
        raise ValueError(f"the fake engine knows no {min(unknown)!r} in its script")
    return msgspec.convert(parts, FakeScript, strict=False)


# ----------------------------------------------------------------------
# What a fake engine answers: words, vectors and log-probabilities that follow from the question alone.

BYTES = 256


def words_of(given: str | tuple[int, ...]) -> Sequence[object]:
    """Return the tokens of an input: its words, or the ids that it is made of."""
    return given.split() or [given] if isinstance(given, str) else given


def vector_of(given: str | tuple[int, ...]) -> bytes:
    """Four numbers of length 1 together, the same ones for the same input."""
    seed = zlib.crc32(repr(given).encode())
    numbers = [(seed >> shift & 255) + 1 for shift in (0, 8, 16, 24)]
    return struct.pack("<4f", *(number / math.hypot(*numbers) for number in numbers))


def answer_to(request: VocabularyRequest) -> VocabularyAnswer:
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
