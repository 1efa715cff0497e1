# SPDX-License-Identifier: GPL-3.0-only
"""The events of one request, in order.

    Queued* Loading* Started Delta* (Finished | Failed)      text: served
    Queued* Loading* Embedded* (Finished | Failed)           vectors
    Loading* (Tokenized | Detokenized | Templated) Finished  what the vocabulary alone answers
    Queued* Loading* (Finished | Failed)                     ended before its first token

Exactly one `Finished` or `Failed` ends every stream. Dialects render these to bytes.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from modeld.errors import Problem


class FinishReason(StrEnum):
    """Why a generation ended, as the native API spells it."""

    STOP = "stop"
    """An end-of-generation token or a stop sequence."""
    LENGTH = "length"
    """`max_tokens` or the context is used up."""
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    CANCELLED = "cancelled"
    ERROR = "error"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts. `cached_tokens` of the prompt were served from the prefix cache.

    `drafted_tokens` were guessed ahead, and `accepted_tokens` of them were what then was drawn.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds, from arrival of the request.

    `queue_s` is time without a slot, less `load_s`; `ttft_s` is None when there was no token;
    `tokens_per_second` counts from the first token to the last and is 0.0 below two tokens.
    """

    duration_s: float = 0.0
    queue_s: float = 0.0
    load_s: float = 0.0
    ttft_s: float | None = None
    tokens_per_second: float = 0.0

    @property
    def prompt_s(self) -> float:
        """What the prompt took: what is neither queue nor load until the first token, or else the end."""
        return max(0.0, self._ttft_s - self.queue_s - self.load_s)

    @property
    def text_s(self) -> float:
        """From the first token to the end."""
        return max(0.0, self.duration_s - self._ttft_s)

    @property
    def _ttft_s(self) -> float:
        return self.duration_s if self.ttft_s is None else self.ttft_s


class TokenLogprob(msgspec.Struct, frozen=True):
    """One candidate token: its id, its text as bytes (a token may be half a character), ln p."""

    token_id: int
    text: bytes
    logprob: float


class Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    """The chosen token and the most probable ones at its position, most probable first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


class Queued(msgspec.Struct, frozen=True, tag="queued"):
    """The request waits. `position` counts from 1; `eta_s` is None while unknown."""

    position: int
    eta_s: float | None = None


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """The model is being loaded; `progress` is in [0, 1]."""

    progress: float


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The first token has been sampled."""

    usage: Usage
    thought: str = ""
    """The marker of a thought (`domain.tool_calls`) that the prompt ends with, so that the text begins in
    there."""


class Delta(msgspec.Struct, frozen=True, tag="delta"):
    """Text of one step: never part of a UTF-8 character, nor of a stop sequence.

    It may be empty only when it carries `logprobs`.
    """

    text: str
    logprobs: tuple[Logprobs, ...] = ()


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """Vectors of consecutive inputs, the first of them number `first` (from 0).

    Each is its numbers as 32-bit floats, least significant byte first.
    """

    first: int
    vectors: tuple[bytes, ...]


class Tokenized(msgspec.Struct, frozen=True, tag="tokenized"):
    """The tokens of a text. `pieces`, if asked for: the bytes of each (maybe half a character)."""

    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...] | None = None


class Detokenized(msgspec.Struct, frozen=True, tag="detokenized"):
    """The bytes that tokens stand for: any bytes, not always UTF-8."""

    data: bytes


class Templated(msgspec.Struct, frozen=True, tag="templated"):
    """What a chat template made of messages; `tokens`, if asked for: how many it has as a prompt."""

    prompt: str
    tokens: int | None = None


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The generation ended by `reason`; never `ERROR`, which is `Failed`."""

    reason: FinishReason
    usage: Usage
    stats: Stats
    stop: str = ""
    """The stop sequence that ended the text, if one did."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The request was refused, or broke after it began."""

    problem: Problem
    usage: Usage = Usage()
    stats: Stats = Stats()


VocabularyAnswer = Tokenized | Detokenized | Templated
"""What the vocabulary alone answers."""
Event = (
    Queued | Loading | Started | Delta | Embedded | Tokenized | Detokenized | Templated | Finished | Failed
)
Last = Finished | Failed
"""An event that ends a stream."""
