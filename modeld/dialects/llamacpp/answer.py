# SPDX-License-Identifier: GPL-3.0-only
"""What llama.cpp's own server answers, as it is written. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType


class LlamaTokenProb(msgspec.Struct, frozen=True, kw_only=True):
    """A token, and the natural logarithm of its probability."""

    id: int
    token: str
    bytes: list[int]
    logprob: float


class LlamaProb(LlamaTokenProb, frozen=True, kw_only=True):
    """The chosen token of one place, and the most probable ones there."""

    top_logprobs: list[LlamaTokenProb]


class LlamaTimings(msgspec.Struct, frozen=True, kw_only=True):
    """Counts and milliseconds: of the prompt from the slot to the first token, of the text from there on."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class LlamaCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a stream, or the whole answer: then, and in the last event, `stop` is true.

    `stop_type` is `eos`, `word`, `limit`, or modeld's own: timeout, shutdown, cancelled.
    """

    index: int = 0
    content: str
    tokens: list[int] = []
    stop: bool
    id_slot: int = -1
    tokens_predicted: int
    tokens_evaluated: int
    completion_probabilities: list[LlamaProb] | UnsetType = UNSET
    model: str | UnsetType = UNSET
    generation_settings: Annotated[msgspec.Raw | UnsetType, Meta(extra_json_schema={"type": "object"})] = (
        UNSET
    )
    prompt: str | list[int] | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET
    stop_type: str | UnsetType = UNSET
    stopping_word: str | UnsetType = UNSET
    tokens_cached: int | UnsetType = UNSET
    timings: LlamaTimings | UnsetType = UNSET


class LlamaErrorDetail(msgspec.Struct, frozen=True):
    """The HTTP status, a sentence, and what kind it is in llama.cpp's words."""

    code: int
    message: str
    type: str


class LlamaError(msgspec.Struct, frozen=True):
    """Every refusal, and the last event of a stream that broke."""

    error: LlamaErrorDetail
