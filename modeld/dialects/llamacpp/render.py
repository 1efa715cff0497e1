# SPDX-License-Identifier: GPL-3.0-only
"""Render a request's events as llama.cpp's server does, and its errors. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from modeld.dialects.common.streaming import (
    LEAST_LOGPROB,
    StreamRenderer,
    VectorResponseBuilder,
    json_bytes,
    rounded,
    text_of,
)
from modeld.dialects.llamacpp.completion import MAX_UINT32
from modeld.domain.request import AS_MANY_AS_FIT, GenerateRequest, Sampling
from modeld.domain.request_events import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Last,
    Logprobs,
    Started,
    Stats,
    TokenLogprob,
    Usage,
)
from modeld.errors import Problem

# ----------------------------------------------------------------------
# What llama.cpp's own server answers, as it is written. Pure.


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


# ----------------------------------------------------------------------

KEEPALIVE = b": still here\n\n"
"""A comment of server-sent events."""
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "unavailable_error",
    503: "unavailable_error",
    507: "unavailable_error",
}
_STOP_TYPES: Mapping[FinishReason, str] = {FinishReason.STOP: "eos", FinishReason.LENGTH: "limit"}


class LlamaCompletionRenderer(StreamRenderer):
    """Writes the answer to `/completion`. Feed it every event once, in order.

    Attributes:
      last: the event that ended the request, once it came.
    """

    last: Last | None

    keepalive = KEEPALIVE

    def __init__(self, request: GenerateRequest, *, model: str) -> None:
        super().__init__()
        self._request = request
        self._model = model
        self._usage = Usage()
        self._texts: list[str] = []
        self._probs: list[LlamaProb] = []
        self._told = 0

    def lines(self, events: Sequence[Event]) -> bytes:
        """Return the events of the stream for these; may be empty."""
        out: list[bytes] = []
        for event in events:
            match event:
                case Started(usage=usage):
                    self._usage = usage
                case Delta(text=text, logprobs=logprobs):
                    self._told += 1
                    out.append(_event(json_bytes(self._part(text, [_prob(entry) for entry in logprobs]))))
                case Finished():
                    self.last = event
                    out.append(_event(json_bytes(self._answer(event, "", []))))
                case Failed():
                    out.append(self.failure(event.problem))
                case _:
                    pass
        return b"".join(out)

    def _broken(self, problem: Problem) -> bytes:
        return _event(error_answer(problem, "")[1])

    def _gather(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._texts.append(event.text)
            self._probs += [_prob(entry) for entry in event.logprobs]

    def _whole(self, last: Finished) -> bytes:
        return json_bytes(self._answer(last, "".join(self._texts), self._probs))

    def _part(self, text: str, probs: list[LlamaProb]) -> LlamaCompletion:
        return LlamaCompletion(
            content=text,
            stop=False,
            tokens_predicted=self._told,
            tokens_evaluated=self._usage.prompt_tokens,
            completion_probabilities=probs or UNSET,
        )

    def _answer(self, last: Finished, text: str, probs: list[LlamaProb]) -> LlamaCompletion:
        request, usage = self._request, last.usage
        limit = request.max_tokens
        cut = last.reason is FinishReason.LENGTH and usage.completion_tokens != limit
        word = "word" if last.stop else _STOP_TYPES.get(last.reason, last.reason.value)
        return LlamaCompletion(
            content=text,
            stop=True,
            tokens_predicted=usage.completion_tokens,
            tokens_evaluated=usage.prompt_tokens,
            completion_probabilities=probs or UNSET,
            model=self._model,
            generation_settings=settings_of(request),
            prompt=list(request.prompt_tokens) if request.prompt is None else request.prompt,
            truncated=cut,
            stop_type=word,
            stopping_word=last.stop,
            tokens_cached=usage.cached_tokens,
            timings=_timings(usage, last.stats),
        )


class LlamaEmbeddingRenderer(VectorResponseBuilder):
    """Writes the answer to `/embedding`.

    Attributes:
      last: the event that ended the request, once it came.
    """

    def _whole(self, _last: Finished) -> bytes:
        entries = enumerate(self._vectors)
        return b"[%b]" % b",".join(b'{"index":%d,"embedding":[%b]}' % entry for entry in entries)


def settings_of(request: GenerateRequest) -> msgspec.Raw:
    """Return the settings of a request by llama.cpp's names."""
    sampling = request.sampling
    limit = -1 if request.max_tokens == AS_MANY_AS_FIT else request.max_tokens
    told: dict[str, object] = {name: getattr(sampling, name) for name in Sampling.__struct_fields__}
    told |= {
        "n_predict": limit,
        "max_tokens": limit,
        "seed": MAX_UINT32 if sampling.seed is None else sampling.seed,
        "logit_bias": [[token, max(bias, LEAST_LOGPROB)] for token, bias in sampling.logit_bias],
        "stop": request.stop,
        "ignore_eos": request.ignore_eos,
        "n_probs": request.logprobs or 0,
    }
    return msgspec.Raw(json_bytes(told))


def error_answer(problem: Problem, _request_id: str) -> tuple[int, bytes]:
    """Return status and body of a refusal."""
    status = problem.status
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return status, json_bytes(LlamaError(LlamaErrorDetail(status, problem.message, kind)))


def unavailable(reason: str) -> LlamaError:
    """Return what llama.cpp answers with 503."""
    return LlamaError(LlamaErrorDetail(503, reason, "unavailable_error"))


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def _timings(usage: Usage, stats: Stats) -> LlamaTimings:
    prompt_s, text_s = stats.prompt_s, stats.text_s
    prompt_n = usage.prompt_tokens - usage.cached_tokens
    return LlamaTimings(
        cache_n=usage.cached_tokens,
        prompt_n=prompt_n,
        prompt_ms=_ms(prompt_s),
        prompt_per_token_ms=_ms(prompt_s / prompt_n) if prompt_n else 0.0,
        prompt_per_second=round(prompt_n / prompt_s, 3) if prompt_s else 0.0,
        predicted_n=usage.completion_tokens,
        predicted_ms=_ms(text_s),
        predicted_per_token_ms=_ms(text_s / usage.completion_tokens) if usage.completion_tokens else 0.0,
        predicted_per_second=round(usage.completion_tokens / text_s, 3) if text_s else 0.0,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _prob(entry: Logprobs) -> LlamaProb:
    chosen = _token(entry.chosen)
    return LlamaProb(
        id=chosen.id,
        token=chosen.token,
        bytes=chosen.bytes,
        logprob=chosen.logprob,
        top_logprobs=[_token(token) for token in entry.top],
    )


def _token(token: TokenLogprob) -> LlamaTokenProb:
    return LlamaTokenProb(
        id=token.token_id,
        token=text_of(token),
        bytes=list(token.text),
        logprob=rounded(token.logprob),
    )
