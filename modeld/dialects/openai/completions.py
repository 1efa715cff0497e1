# SPDX-License-Identifier: GPL-3.0-only
"""Parse the older `POST /v1/completions`, and render its answers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from modeld.dialects.common.body import MAX_INT32, Input, inputs_of
from modeld.dialects.common.streaming import json_bytes, json_string, rounded, text_of
from modeld.dialects.openai.common import (
    MOST_CHOICES,
    ChoiceKeys,
    FinishText,
    OpenAIUsage,
    ParsedRequest,
    choices_of,
    include_usage,
    read,
    sampling_of,
    stop_of,
    usage_body,
)
from modeld.dialects.openai.render import ChoiceRenderer, finish_text
from modeld.domain.request import GenerateRequest
from modeld.domain.request_events import FinishReason, Logprobs, Usage
from modeld.errors import InvalidRequest

MOST_LOGPROBS = 5
DEFAULT_TOKENS = 16
"""As in OpenAI's API."""
Token = Annotated[int, Meta(ge=0, le=MAX_INT32)]
_Prompt = str | Annotated[list[str | Token | list[Token]], Meta(min_length=1)]


class CompletionBody(ChoiceKeys, kw_only=True):
    """What `POST /v1/completions` takes."""

    prompt: Annotated[_Prompt, Meta(description="A text, the ids of its tokens, or a list of either")]
    max_tokens: Annotated[Annotated[int, Meta(ge=1, le=MAX_INT32)] | None, Meta(description="Default 16")] = (
        None
    )
    echo: Annotated[bool | None, Meta(description="The text begins with the prompt; default false")] = None
    logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None, Meta(description="Only as many as `n`")
    ] = None
    suffix: None = None


_decoder = msgspec.json.Decoder(CompletionBody)


def parse_completion(body: bytes) -> ParsedRequest:
    """Read the body of `POST /v1/completions`. Raises: InvalidRequest."""
    wire = read(body, _decoder, '{"model": "...", "prompt": "Hello"}')
    if wire.best_of not in (None, wire.n or 1):
        raise InvalidRequest(
            f"`best_of` is {wire.best_of}, `n` is {wire.n or 1}: choices are not ranked; leave out `best_of`"
        )
    prompts = inputs_of(wire.prompt, field="prompt", most=None)
    count = len(prompts) * (wire.n or 1)
    if count > MOST_CHOICES:
        raise InvalidRequest(f"`prompt` and `n` ask for {count} choices; {MOST_CHOICES} are the most")
    requests = [
        GenerateRequest(
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_tokens=() if isinstance(prompt, str) else prompt,
            max_tokens=wire.max_tokens or DEFAULT_TOKENS,
            sampling=sampling_of(wire),
            stop=stop_of(wire),
            ignore_eos=bool(wire.ignore_eos),
            logprobs=wire.logprobs,
        )
        for prompt in prompts
    ]
    return ParsedRequest(
        orders=choices_of(wire, requests),
        n=wire.n or 1,
        stream=bool(wire.stream),
        include_usage=include_usage(wire),
        echo=_echo(wire, prompts),
    )


def _echo(wire: CompletionBody, prompts: Sequence[Input]) -> tuple[str, ...]:
    if not wire.echo:
        return ()
    if wire.logprobs is not None:
        raise InvalidRequest(
            "`echo` and `logprobs` do not go together: log-probabilities of a prompt are not computed. "
            "Leave out one of the two"
        )
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequest("`echo` repeats a text; give the `prompt` as text, or leave out `echo`")
    return tuple(str(prompt) for prompt in prompts)


# ----------------------------------------------------------------------
# Answers of `/v1/completions`: an object, or a stream of chunks. Pure.


class OldLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities in four lists of one length: a token, its own, the most probable ones, its place."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the answers."""

    index: int
    text: str
    logprobs: OldLogprobs | None
    finish_reason: FinishText


class CompletionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: OpenAIUsage


class _Choice:
    """What is known of one choice."""

    def __init__(self, echo: str) -> None:
        self.echo = echo
        self.texts: list[str] = []
        self.logprobs: list[Logprobs] = []
        self.shown = 0
        """Characters of its tokens that were told with log-probabilities."""


class OpenAICompletionRenderer(ChoiceRenderer):
    """Writes one answer."""

    kind = "text_completion"

    def __init__(self, asked: ParsedRequest, *, request_id: str, model: str, created: int) -> None:
        super().__init__(asked, answer_id=f"cmpl-{request_id}", model=model, created=created)
        echo = asked.echo or ("",) * len(asked.orders)
        self._choices = [_Choice(echo[index // asked.n]) for index in range(len(asked.orders))]

    def _delta(self, index: int, text: str, logprobs: tuple[Logprobs, ...]) -> bytes:
        choice = self._choices[index]
        text, choice.echo = choice.echo + text, ""
        told = json_bytes(_old(logprobs, choice)) if logprobs else b"null"
        return self._chunk(index, text, told) if text or logprobs else b""

    def _finish(self, index: int, reason: FinishReason) -> bytes:
        echo, self._choices[index].echo = self._choices[index].echo, ""
        return self._chunk(index, echo, finish=json_string(finish_text(reason)))

    def _chunk(self, index: int, text: str, logprobs: bytes = b"null", finish: bytes = b"null") -> bytes:
        return b'%b"choices":[{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}]%b' % (
            self._head,
            index,
            json_string(text),
            logprobs,
            finish,
            self._tail,
        )

    def _gather(self, index: int, text: str, logprobs: tuple[Logprobs, ...]) -> None:
        self._choices[index].texts.append(text)
        self._choices[index].logprobs += logprobs

    def _answer(self, usage: Usage) -> CompletionAnswer:
        return CompletionAnswer(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[
                CompletionChoice(
                    index=index,
                    text=choice.echo + "".join(choice.texts),
                    logprobs=_old(choice.logprobs, choice) if choice.logprobs else None,
                    finish_reason=finish_text(self._ended[index].reason),
                )
                for index, choice in enumerate(self._choices)
            ],
            usage=usage_body(usage),
        )


def _old(logprobs: Iterable[Logprobs], choice: _Choice) -> OldLogprobs:
    """Return log-probabilities in the old form; a token that is no whole characters has U+FFFD."""
    found = OldLogprobs([], [], [], [])
    for entry in logprobs:
        token = text_of(entry.chosen)
        found.tokens.append(token)
        found.token_logprobs.append(rounded(entry.chosen.logprob))
        found.top_logprobs.append({text_of(top): rounded(top.logprob) for top in reversed(entry.top)})
        found.text_offset.append(choice.shown)
        choice.shown += len(token)
    return found
