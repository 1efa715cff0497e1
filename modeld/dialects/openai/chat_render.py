# SPDX-License-Identifier: GPL-3.0-only
"""Render answers of `/v1/chat/completions`, whole or as chunks. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from modeld.dialects.common.streaming import json_bytes, json_string
from modeld.dialects.common.tool_calls import call_id
from modeld.dialects.common.tool_reader import CallPiece, Piece, TextPiece, ToolReader
from modeld.dialects.openai.common import (
    FinishText,
    OpenAIUsage,
    ParsedRequest,
    TokenLogprobBody,
    logprob_body,
    usage_body,
)
from modeld.dialects.openai.render import ChoiceRenderer, finish_text
from modeld.domain.request_events import FinishReason, Logprobs, Usage


class FunctionCall(msgspec.Struct, frozen=True):
    """What was called: `arguments` is JSON text, as the model wrote it."""

    name: str
    arguments: str


class ToolCallBody(msgspec.Struct, frozen=True, kw_only=True):
    """A call."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessageBody(msgspec.Struct, frozen=True, kw_only=True):
    """What the assistant said; `content` is null when it only called."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCallBody] | UnsetType = UNSET


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities, a token after the other; calls included."""

    content: list[TokenLogprobBody]
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the answers."""

    index: int
    message: ChatMessageBody
    logprobs: ChatLogprobs | None
    finish_reason: FinishText


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: OpenAIUsage


class _Choice:
    """What is known of one choice."""

    def __init__(self, index: int, asked: ParsedRequest, request_id: str) -> None:
        self.begun = False
        self.texts: list[str] = []
        self.calls: list[ToolCallBody] = []
        self.logprobs: list[TokenLogprobBody] = []
        self.reader: ToolReader | None = None
        if asked.tools:
            self.reader = ToolReader(
                asked.tools,
                lambda number: call_id(request_id, index, number),
                forced=asked.forced,
                one_call=asked.one_call,
            )

    def keep(self, pieces: Iterable[Piece]) -> None:
        """Take pieces for the answer as a whole."""
        for piece in pieces:
            match piece:
                case TextPiece(text=text):
                    self.texts.append(text)
                case CallPiece(id=identity, name=name, arguments=arguments):
                    self.calls.append(ToolCallBody(id=identity, function=FunctionCall(name, arguments)))


class ChatRenderer(ChoiceRenderer):
    """Writes one answer."""

    kind = "chat.completion.chunk"

    def __init__(self, asked: ParsedRequest, *, request_id: str, model: str, created: int) -> None:
        super().__init__(asked, answer_id=f"chatcmpl-{request_id}", model=model, created=created)
        self._choices = [_Choice(index, asked, request_id) for index in range(len(asked.orders))]
        self._has_logprobs = any(
            getattr(order.request, "logprobs", None) is not None for order in asked.orders
        )

    def _delta(self, index: int, text: str, logprobs: tuple[Logprobs, ...]) -> bytes:
        choice = self._choices[index]
        head = self._role(index, choice)
        if choice.reader is None and not logprobs:
            return head + (self._chunk(index, b'{"content":%b}' % json_string(text)) if text else b"")
        told = b"null"
        if logprobs:
            told = json_bytes(ChatLogprobs([logprob_body(entry) for entry in logprobs]))
        if choice.reader is None:
            return head + self._chunk(index, b'{"content":%b}' % json_string(text), told)
        chunks = _deltas(choice.reader.feed(text))
        if logprobs and not chunks:
            chunks = [b"{}"]
        nulls = [told, *[b"null"] * len(chunks)]
        return head + b"".join(map(self._chunk, [index] * len(chunks), chunks, nulls))

    def _finish(self, index: int, reason: FinishReason) -> bytes:
        choice = self._choices[index]
        told = self._role(index, choice) + self._rest(index)
        calls = choice.reader is not None and choice.reader.calls > 0
        return told + self._chunk(index, b"{}", finish=json_string(_finish_text(reason, calls=calls)))

    def _rest(self, index: int) -> bytes:
        reader = self._choices[index].reader
        deltas = [] if reader is None else _deltas(reader.end())
        return b"".join(self._chunk(index, delta) for delta in deltas)

    def _begin_in(self, index: int, thought: str) -> None:
        reader = self._choices[index].reader
        if reader is not None:
            reader.begin_in(thought)

    def _role(self, index: int, choice: _Choice) -> bytes:
        if choice.begun:
            return b""
        choice.begun = True
        return self._chunk(index, b'{"role":"assistant","content":"","refusal":null}')

    def _chunk(self, index: int, delta: bytes, logprobs: bytes = b"null", finish: bytes = b"null") -> bytes:
        return b'%b"choices":[{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}]%b' % (
            self._head,
            index,
            delta,
            logprobs,
            finish,
            self._tail,
        )

    def _gather(self, index: int, text: str, logprobs: tuple[Logprobs, ...]) -> None:
        choice = self._choices[index]
        choice.logprobs += map(logprob_body, logprobs)
        if choice.reader is None:
            choice.texts.append(text)
        else:
            choice.keep(choice.reader.feed(text))

    def _answer(self, usage: Usage) -> ChatAnswer:
        return ChatAnswer(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._whole(index, choice) for index, choice in enumerate(self._choices)],
            usage=usage_body(usage),
        )

    def _whole(self, index: int, choice: _Choice) -> ChatChoice:
        if choice.reader is not None:
            choice.keep(choice.reader.end())
        text, calls = "".join(choice.texts), choice.calls
        return ChatChoice(
            index=index,
            message=ChatMessageBody(content=text if text or not calls else None, tool_calls=calls or UNSET),
            logprobs=ChatLogprobs(choice.logprobs) if self._has_logprobs else None,
            finish_reason=_finish_text(self._ended[index].reason, calls=bool(calls)),
        )


def _finish_text(reason: FinishReason, *, calls: bool) -> FinishText:
    return "tool_calls" if calls and reason is FinishReason.STOP else finish_text(reason)


def _deltas(pieces: Iterable[Piece]) -> list[bytes]:
    """Return the deltas of pieces of an answer with tools."""
    deltas: list[bytes] = []
    for piece in pieces:
        match piece:
            case TextPiece(text=text):
                deltas.append(b'{"content":%b}' % json_string(text))
            case CallPiece(number=number, id=identity, name=name, arguments=arguments):
                call = ToolCallBody(id=identity, function=FunctionCall(name, ""))
                deltas += [
                    b'{"tool_calls":[{"index":%d,%b]}' % (number, json_bytes(call)[1:]),
                    b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}'
                    % (number, json_string(arguments)),
                ]
    return deltas
