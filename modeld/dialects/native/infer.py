# SPDX-License-Identifier: GPL-3.0-only
"""Parse `POST /infer` into an order. Pure."""

from __future__ import annotations

from typing import cast

import msgspec
from msgspec.structs import replace

from modeld.dialects.common.body import MAX_INT32, decode, keep_alive_of, model_of, timeout_of
from modeld.dialects.common.sampling import sampling_of, stops_of
from modeld.dialects.common.schema import schema_text
from modeld.dialects.native.wire import InferBody
from modeld.domain.request import Constraint, ConstraintKind, GenerateRequest, Message, Order, Priority
from modeld.errors import InvalidGrammar, InvalidRequest

# ----------------------------------------------------------------------
# What the text of an answer must match, as a native body asks for it. Pure.

_TOKEN, _WORD = 0, 1
"""Types of triggers in llama.cpp (common.h); 2 and 3 are regular expressions."""


def constraint_of(wire: InferBody) -> Constraint | None:
    """Return what the text must match; None for free text.

    Raises: InvalidRequest, InvalidGrammar for triggers that cannot be used.
    """
    schema = wire.json_schema
    has_schema = isinstance(schema, msgspec.Raw) and bytes(schema) != b"null"
    if wire.grammar is not None and has_schema:
        raise InvalidRequest("give either `grammar` or `json_schema`, not both")
    if wire.grammar is not None:
        if not wire.grammar.strip():
            raise InvalidRequest("`grammar` is empty; leave it out for free text")
        return _with_triggers(Constraint(kind=ConstraintKind.GRAMMAR, text=wire.grammar), wire)
    if not has_schema:
        if wire.grammar_lazy or wire.grammar_triggers:
            raise InvalidRequest("`grammar_lazy` and `grammar_triggers` need a `grammar` or a `json_schema`")
        return None
    text = schema_text(cast("msgspec.Raw", schema), "json_schema")
    return _with_triggers(Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text), wire)


def _with_triggers(constraint: Constraint, wire: InferBody) -> Constraint:
    triggers = wire.grammar_triggers or ()
    if not wire.grammar_lazy:
        if triggers:
            raise InvalidRequest("`grammar_triggers` are for a lazy grammar: set `grammar_lazy` to true")
        return constraint
    if not triggers:
        raise InvalidGrammar(
            'a lazy grammar needs `grammar_triggers`, such as [{"type": 1, "value": "<call>"}]'
        )
    words: list[str] = []
    tokens: list[int] = []
    for number, trigger in enumerate(triggers):
        if trigger.type == _TOKEN and trigger.token is not None:
            tokens.append(trigger.token)
        elif trigger.type == _WORD and trigger.value:
            words.append(trigger.value)
        elif trigger.type in (_TOKEN, _WORD):
            lacking = "token" if trigger.type == _TOKEN else "value"
            raise InvalidGrammar(f"`grammar_triggers[{number}]` lacks its `{lacking}`")
        else:
            raise InvalidGrammar(
                f"`grammar_triggers[{number}]` is a pattern (type {trigger.type}), and the search for it "
                f"has no bound in time; give words (type 1) or tokens (type 0)"
            )
    return replace(constraint, trigger_words=tuple(words), trigger_tokens=tuple(tokens))


# ----------------------------------------------------------------------

_decoder = msgspec.json.Decoder(InferBody)
_request = GenerateRequest()


class InferOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request: the order for the scheduler, and how the client wants its answer."""

    order: Order
    stream: bool
    events: bool
    echo: str = ""
    """Text that comes before the answer."""


def parse_infer(body: bytes) -> InferOrder:
    """Read the body of `POST /infer`.

    Raises: InvalidRequest with a sentence that names the key.
    """
    wire = decode(body, _decoder, '{"prompt": "Hello"}')
    stream = wire.stream is not False
    if wire.events and not stream:
        raise InvalidRequest("events are lines of a stream: leave out `events`, or set `stream` to true")
    return InferOrder(
        order=Order(
            request=_generation(wire),
            model=model_of(wire.model),
            timeout_s=timeout_of(wire.timeout),
            priority=wire.priority or Priority.NORMAL,
            keep_alive_s=keep_alive_of(wire.keep_alive),
        ),
        stream=stream,
        events=bool(wire.events),
        echo=_echo(wire),
    )


def _generation(wire: InferBody) -> GenerateRequest:
    if wire.prompt is not None and wire.messages is not None:
        raise InvalidRequest("give either `prompt` or `messages`, not both")
    if wire.prompt is None and wire.messages is None:
        raise InvalidRequest("there is nothing to answer: give `prompt` or `messages`")
    if wire.prompt is not None and not wire.prompt:
        raise InvalidRequest("`prompt` is empty; give it some text")
    if wire.messages is not None and not wire.messages:
        raise InvalidRequest("`messages` is empty; give it at least one message")
    return GenerateRequest(
        prompt=wire.prompt,
        messages=tuple(Message(role=turn.role, content=turn.content) for turn in wire.messages or ()),
        max_tokens=_max_tokens(wire),
        sampling=sampling_of(wire),
        stop=stops_of(wire.stop),
        stop_tokens=tuple(wire.stop_token_ids or ()),
        ignore_eos=bool(wire.ignore_eos),
        logprobs=_logprobs(wire.logprobs),
        constraint=constraint_of(wire),
        lookup=wire.prompt_lookup or 0,
    )


def _echo(wire: InferBody) -> str:
    if not wire.echo:
        return ""
    if wire.prompt is None:
        raise InvalidRequest(
            "`echo` repeats a `prompt`; what a template makes of `messages` is not told. Leave out `echo`"
        )
    if _logprobs(wire.logprobs) is not None:
        raise InvalidRequest(
            "`echo` and `logprobs` do not go together: log-probabilities of a prompt are not computed, since "
            "they would need the logits of all of its tokens at once. Leave out one of the two"
        )
    return wire.prompt


def _max_tokens(wire: InferBody) -> int:
    """Return the bound under either of its names; -1 stands for all the room that the context leaves."""
    if wire.n_predict is None:
        return _request.max_tokens if wire.max_tokens is None else wire.max_tokens
    if wire.max_tokens not in (None, wire.n_predict):
        raise InvalidRequest(
            f"`max_tokens` is {wire.max_tokens} and `n_predict` {wire.n_predict}, and both mean the same; "
            f"give one of them"
        )
    if wire.n_predict == 0:
        raise InvalidRequest("`n_predict` is 0; it must be at least 1, or -1 for until the context is full")
    return wire.n_predict if wire.n_predict > 0 else MAX_INT32


def _logprobs(value: int | bool | None) -> int | None:
    return None if value is None or value is False else int(value) if value is not True else 0
