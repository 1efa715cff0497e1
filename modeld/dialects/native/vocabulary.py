# SPDX-License-Identifier: GPL-3.0-only
"""Parse `POST /tokenize`, `/detokenize` and `/apply-template`, and render their answers. Pure.

Keys are those of llama.cpp's server; `model`, `timeout`, `priority` and `keep_alive` as in `/infer`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from modeld.dialects.common.body import MAX_INT32, decode, keep_alive_of, model_of, timeout_of
from modeld.dialects.common.streaming import json_bytes
from modeld.dialects.native.wire import MessageBody, RequestTerms
from modeld.domain.request import (
    DetokenizeRequest,
    Message,
    Order,
    Priority,
    TemplateRequest,
    TokenizeRequest,
    VocabularyRequest,
)
from modeld.domain.request_events import Detokenized, Templated, Tokenized, VocabularyAnswer
from modeld.errors import InvalidRequest

MOST = 131_072
"""Characters or tokens at once: so many take llama.cpp some 0.1 s, and the streams of the model wait."""

_Token = Annotated[int, Meta(ge=0, le=MAX_INT32)]


class TokenizeBody(RequestTerms):
    """What `POST /tokenize` takes."""

    content: Annotated[str, Meta(max_length=MOST, description="Any text")]
    add_special: Annotated[
        bool | None, Meta(description="Add the tokens that begin and end a text; default false")
    ] = None
    parse_special: Annotated[
        bool | None, Meta(description="Texts of control tokens become those tokens; default true")
    ] = None
    with_pieces: Annotated[bool | None, Meta(description="Tell the text of each token, too")] = None


class DetokenizeBody(RequestTerms):
    """What `POST /detokenize` takes."""

    tokens: Annotated[list[_Token], Meta(max_length=MOST, description="Ids of tokens")]


class TemplateBody(RequestTerms):
    """What `POST /apply-template` takes."""

    messages: Annotated[list[MessageBody], Meta(min_length=1, description="As in `POST /infer`")]


class PieceBody(msgspec.Struct, frozen=True):
    """A token and what it stands for: text, or a list of bytes that are no whole characters."""

    id: int
    piece: str | list[int]


class TokensBody(msgspec.Struct, frozen=True):
    """The tokens of a text: ids, or with `with_pieces` objects."""

    tokens: list[int | PieceBody]


class ContentBody(msgspec.Struct, frozen=True):
    """The text of tokens. When it is no UTF-8, `bytes` has it, and `content` U+FFFD where it is broken."""

    content: str
    bytes: list[int] | UnsetType = UNSET


class PromptBody(msgspec.Struct, frozen=True):
    """The prompt that a chat template made of messages."""

    prompt: str


_tokenize = msgspec.json.Decoder(TokenizeBody)
_detokenize = msgspec.json.Decoder(DetokenizeBody)
_template = msgspec.json.Decoder(TemplateBody)


def parse_tokenize(body: bytes) -> Order:
    """Read the body of `POST /tokenize`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _tokenize, '{"content": "Hello"}')
    request = TokenizeRequest(
        content=wire.content,
        add_special=bool(wire.add_special),
        parse_special=wire.parse_special is not False,
        with_pieces=bool(wire.with_pieces),
    )
    return _order(wire, request)


def parse_detokenize(body: bytes) -> Order:
    """Read the body of `POST /detokenize`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _detokenize, '{"tokens": [1, 2, 3]}')
    return _order(wire, DetokenizeRequest(tokens=tuple(wire.tokens)))


def parse_template(body: bytes) -> Order:
    """Read the body of `POST /apply-template`. Raises: InvalidRequest with a sentence that names the key."""
    wire = decode(body, _template, '{"messages": [{"role": "user", "content": "Hello"}]}')
    size = sum(len(turn.role) + len(turn.content) for turn in wire.messages)
    if size > MOST:
        raise InvalidRequest(f"`messages` have {size} characters; send {MOST} at most")
    messages = tuple(Message(role=turn.role, content=turn.content) for turn in wire.messages)
    return _order(wire, TemplateRequest(messages=messages))


def vocabulary_answer(answer: VocabularyAnswer) -> bytes:
    """Return the JSON of an answer."""
    match answer:
        case Tokenized(tokens=tokens, pieces=pieces):
            if pieces is None:
                return json_bytes(TokensBody(list(tokens)))
            pairs = zip(tokens, pieces, strict=True)
            return json_bytes(TokensBody([PieceBody(token, _piece(piece)) for token, piece in pairs]))
        case Detokenized(data=data):
            content = data.decode(errors="replace")
            exact = content.encode() == data
            return json_bytes(ContentBody(content, UNSET if exact else list(data)))
        case Templated(prompt=prompt):
            return json_bytes(PromptBody(prompt))


def _order(wire: RequestTerms, request: VocabularyRequest) -> Order:
    return Order(
        request=request,
        model=model_of(wire.model),
        timeout_s=timeout_of(wire.timeout),
        priority=wire.priority or Priority.NORMAL,
        keep_alive_s=keep_alive_of(wire.keep_alive),
    )


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
