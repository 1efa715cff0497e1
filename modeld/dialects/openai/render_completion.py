# SPDX-License-Identifier: GPL-3.0-only
"""Answers of `/v1/completions`: an object, or a stream of chunks. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from modeld.core.events import FinishReason, Logprobs, Usage
from modeld.dialects.framing import json_bytes, json_string
from modeld.dialects.logprobs import rounded, text_of
from modeld.dialects.openai.ask import Asked
from modeld.dialects.openai.render import ChoiceRenderer, finish_text
from modeld.dialects.openai.wire import FinishText, OpenAIUsage, usage_body


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


class CompletionRenderer(ChoiceRenderer):
    """Writes one answer."""

    kind = "text_completion"

    def __init__(self, asked: Asked, *, request_id: str, model: str, created: int) -> None:
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
