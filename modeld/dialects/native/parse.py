# SPDX-License-Identifier: GPL-3.0-only
"""Turns the body of `POST /infer` into an order, or says in a sentence what is wrong with it. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeVar, cast

import msgspec

from modeld.config.values import BadValue, parse_duration
from modeld.core.request import (
    Constraint,
    ConstraintKind,
    GenerateRequest,
    Message,
    Order,
    Priority,
    Sampling,
)
from modeld.dialects.native.complaint import complain
from modeld.dialects.native.wire import MAX_INT32, Bias, Duration, InferBody
from modeld.errors import InvalidRequest

T = TypeVar("T")

MAX_BIAS = 1000.0
MAX_SCHEMA_DEPTH = 100
"""Levels of nesting in a JSON schema."""

_decoder = msgspec.json.Decoder(InferBody)
_sampling = Sampling()
_request = GenerateRequest()


class Generate(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request: the order for the scheduler, and how the client wants its answer."""

    order: Order
    stream: bool
    events: bool


def parse(body: bytes) -> Generate:
    """Read the body of `POST /infer`.

    Raises: InvalidRequest with a sentence that names the key.
    """
    wire = _decode(body)
    stream = wire.stream is not False
    if wire.events and not stream:
        raise InvalidRequest("events are lines of a stream: leave out `events`, or set `stream` to true")
    return Generate(
        order=Order(
            request=_generation(wire),
            model=_model(wire.model),
            timeout_s=_timeout(wire.timeout),
            priority=wire.priority or Priority.NORMAL,
            keep_alive_s=None if wire.keep_alive is None else _seconds("keep_alive", wire.keep_alive),
        ),
        stream=stream,
        events=bool(wire.events),
    )


def _decode(body: bytes) -> InferBody:
    if not body.strip():
        raise InvalidRequest('the body is empty; send JSON such as {"prompt": "Hello"}')
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: byte {error.start} cannot be decoded") from None
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise InvalidRequest(complain(str(error))) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidRequest(_malformed(text, str(error))) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


_ESCAPE = re.compile(r"\\u[dD]([89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F]|[89a-fA-F])|\\.", re.DOTALL)


def _malformed(text: str, reason: str) -> str:
    """Return why `text` is no JSON; half of a surrogate pair is worth a sentence of its own."""
    halves = (match for match in _ESCAPE.finditer(text) if match[1] and len(match[1]) == 1)
    if any(halves):
        return "the body holds an escape such as \\ud83d that is only half of a character"
    return f"the body is not JSON: {reason.removeprefix('JSON is malformed: ')}"


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
        max_tokens=_or(wire.max_tokens, _request.max_tokens),
        sampling=Sampling(
            temperature=_or(wire.temperature, _sampling.temperature),
            top_k=_or(wire.top_k, _sampling.top_k),
            top_p=_or(wire.top_p, _sampling.top_p),
            min_p=_or(wire.min_p, _sampling.min_p),
            typical_p=_or(wire.typical_p, _sampling.typical_p),
            repeat_penalty=_or(wire.repeat_penalty, _sampling.repeat_penalty),
            presence_penalty=_or(wire.presence_penalty, _sampling.presence_penalty),
            frequency_penalty=_or(wire.frequency_penalty, _sampling.frequency_penalty),
            seed=None if wire.seed == -1 else wire.seed,
            logit_bias=_biases(wire.logit_bias),
        ),
        stop=(wire.stop,) if isinstance(wire.stop, str) else tuple(wire.stop or ()),
        ignore_eos=bool(wire.ignore_eos),
        logprobs=_logprobs(wire.logprobs),
        constraint=_constraint(wire),
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _model(name: str | None) -> str | None:
    if name == "":
        raise InvalidRequest("`model` is empty; leave it out for the default model, or see GET /models")
    return name


def _seconds(key: str, value: Duration) -> float:
    try:
        return parse_duration(value)
    except BadValue as error:
        raise InvalidRequest(f"`{key}`: {error}") from None


def _timeout(value: Duration | None) -> float | None:
    if value is None:
        return None
    seconds = _seconds("timeout", value)
    if seconds <= 0:
        raise InvalidRequest("`timeout` must be longer than nothing, such as 30s; leave it out for no limit")
    return seconds


def _biases(value: dict[str, Bias] | list[tuple[int, Bias]] | None) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    pairs: Sequence[tuple[str | int, Bias]] = (
        list(value.items()) if isinstance(value, dict) else cast("list[tuple[str | int, Bias]]", value)
    )
    return tuple((_token_id(token), _bias(bias)) for token, bias in pairs)


def _token_id(token: str | int) -> int:
    if isinstance(token, str):
        if not re.fullmatch(r"\d{1,10}", token, re.ASCII):
            raise InvalidRequest(f'`logit_bias`: "{token[:40]}" is no token id; ids are whole numbers')
        token = int(token)
    if not 0 <= token <= MAX_INT32:
        raise InvalidRequest("`logit_bias`: a token id is a whole number from 0 to 2147483647")
    return token


def _bias(bias: Bias) -> float:
    if bias is False:
        return -math.inf
    if bias is True or not -MAX_BIAS <= bias <= MAX_BIAS:
        raise InvalidRequest("`logit_bias`: a bias is a number from -1000 to 1000, or false")
    return float(bias)


def _logprobs(value: int | bool | None) -> int | None:
    return None if value is None or value is False else int(value) if value is not True else 0


def _constraint(wire: InferBody) -> Constraint | None:
    schema = wire.json_schema
    has_schema = isinstance(schema, msgspec.Raw) and bytes(schema) != b"null"
    if wire.grammar is not None and has_schema:
        raise InvalidRequest("give either `grammar` or `json_schema`, not both")
    if wire.grammar is not None:
        if not wire.grammar.strip():
            raise InvalidRequest("`grammar` is empty; leave it out for free text")
        return Constraint(kind=ConstraintKind.GRAMMAR, text=wire.grammar)
    if not has_schema:
        return None
    text = bytes(cast("msgspec.Raw", schema)).decode()
    _check_schema(text)
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text)


def _check_schema(text: str) -> None:
    """Refuse a schema that is no object, or that nests deeper than a recursive reader can follow."""
    try:
        level: list[object] = [msgspec.json.decode(text, type=dict[str, object])]
    except msgspec.ValidationError:
        raise InvalidRequest('`json_schema` must be an object, such as {"type": "object"}') from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidRequest(_malformed(text, str(error))) from None
    except RecursionError:
        level, depth = [], MAX_SCHEMA_DEPTH + 1
    else:
        depth = 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        depth += 1
        level = [child for value in level for child in _children(value)]
    if depth > MAX_SCHEMA_DEPTH:
        raise InvalidRequest(f"`json_schema` is nested more than {MAX_SCHEMA_DEPTH} levels deep")


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast("dict[str, object]", value).values())
    return cast("list[object]", value) if isinstance(value, list) else []
