# SPDX-License-Identifier: GPL-3.0-only
"""Decode JSON bodies, and read the keys that most dialects share. Pure."""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from decimal import Decimal
from typing import TypeVar, cast

import msgspec

from modeld.config.values import BadValue, parse_duration
from modeld.dialects.common.tolerance import TolerantBody, without_unknown
from modeld.dialects.common.validation_message import STEP, explain, malformed
from modeld.errors import InvalidRequest

MAX_INT32 = 2**31 - 1
MAX_SEED = 2**32 - 2
"""llama.cpp's seeds are 32 bits wide, and the largest of them stands for "draw one"."""

Duration = str | float
"""`30s`, `1m30s`, `500ms`; a plain number is seconds."""
Body = TypeVar("Body", bound=msgspec.Struct)


def decode(body: bytes, decoder: msgspec.json.Decoder[Body], example: str) -> Body:
    """Read a body. A byte order mark in front of it, as some editors and libraries write, is passed over.

    Raises: InvalidRequest with a sentence that names the key; of an empty body, with the example.
    """
    ignored = body.ignored if isinstance(body, TolerantBody) else None
    body = body.removeprefix(BOM_UTF8)
    if not body.strip():
        raise InvalidRequest(f"the body is empty; send JSON such as {example}")
    if body.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or 0 in body[:2]:  # JSON begins with ASCII.
        raise InvalidRequest("the body is UTF-16 or UTF-32; JSON is UTF-8, so send it in that")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: byte {error.start} cannot be decoded") from None
    try:
        return _decode(text, decoder, ignored)
    except msgspec.ValidationError as error:
        raise InvalidRequest(explain(str(error), decoder.type)) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidRequest(malformed(text, str(error))) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def _decode(text: str | bytes, decoder: msgspec.json.Decoder[Body], ignored: list[str] | None) -> Body:
    """Decode; a whole number may be written with a fraction of zero or an exponent, as in `4096.0`.

    JSON knows one kind of number, and many clients have only floats. msgspec takes these for whole numbers
    only together with texts such as "4096". So a float where a whole number belongs is written in digits, and
    the body decoded again. Nothing else of it changes: schemas and arguments stay as they were written.
    """
    for _ in range(_MOST_PLACES):
        try:
            return decoder.decode(text)
        except msgspec.ValidationError as error:
            found = _FLOAT_AT.search(str(error))
            changed = found and _with_digits(text, STEP.findall(found["place"]))
            if not changed and ignored is not None:
                changed = without_unknown(text, str(error), decoder.type, ignored)
            if not changed or changed == text:
                raise
            text = changed
    return decoder.decode(text)


_MOST_PLACES = 64
"""Keys of one body that take whole numbers, and places with unknown keys; no dialect has as many."""
_FLOAT_AT = re.compile(r"got `float` - at `(?P<place>[^`]*)`")
_FLOAT = re.compile(rb"-?\d+(\.\d+)?([eE][+-]?\d{1,3})?")
_MOST_DIGITS = 40
"""More than any whole number of a body may have; what has more becomes one that has as many."""
_LARGE = 2.0**63
_EXPONENT = re.compile(rb"\d[eE]")
"""In lists of ids nobody writes these, and to read them takes msgspec ten times as long."""


def _with_digits(value: str | bytes | msgspec.Raw, steps: list[str]) -> bytes:
    """Return JSON in which floats at a place are written in digits; a step into a list means all items."""
    if not steps:
        return _in_digits(bytes(msgspec.Raw(value)))
    step, rest = steps[0], steps[1:]
    try:
        if step.startswith("."):
            members = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
            members[step[1:]] = msgspec.Raw(_with_digits(members[step[1:]], rest))
            return msgspec.json.encode(members)
        if not any(step.startswith(".") for step in rest):  # Numbers alone: there may be very many.
            raw = bytes(msgspec.Raw(value))
            return raw if _EXPONENT.search(raw) else msgspec.json.encode(_whole(msgspec.json.decode(raw)))
        items = msgspec.json.decode(value, type=list[msgspec.Raw])
    except (msgspec.ValidationError, KeyError):
        return bytes(msgspec.Raw(value))  # Another item of the same list, of another kind.
    return msgspec.json.encode([msgspec.Raw(_with_digits(item, rest)) for item in items])


def _in_digits(text: bytes) -> bytes:
    """Return a number in digits if it is whole, and anything else as it is."""
    if not _FLOAT.fullmatch(text):
        return text
    value = Decimal(text.decode())
    if value != value.to_integral_value():
        return text
    if value.adjusted() >= _MOST_DIGITS:
        value = Decimal(10**_MOST_DIGITS).copy_sign(value)
    return f"{value:.0f}".encode()


def _whole(value: object) -> object:
    """Return numbers in lists and objects, whole ones as such; none there has more than 53 bits."""
    match value:
        case float() if value.is_integer():
            return int(max(-_LARGE, min(value, _LARGE)))
        case list():
            return [_whole(item) for item in cast("list[object]", value)]
        case dict():
            return {key: _whole(item) for key, item in cast("dict[str, object]", value).items()}
        case _:
            return value


def model_of(name: str | None) -> str | None:
    """Return the model that is asked for, None for the default one. Raises: InvalidRequest."""
    if name == "":
        raise InvalidRequest("`model` is empty; leave it out for the default model, or see GET /models")
    return name


def _seconds(key: str, value: Duration) -> float:
    try:
        return parse_duration(value)
    except BadValue as error:
        raise InvalidRequest(f"`{key}`: {error}") from None


def keep_alive_of(value: Duration | None) -> float | None:
    """Return `keep_alive` in seconds. Raises: InvalidRequest."""
    return None if value is None else _seconds("keep_alive", value)


def timeout_of(value: Duration | None) -> float | None:
    """Return `timeout` in seconds. Raises: InvalidRequest."""
    if value is None:
        return None
    seconds = _seconds("timeout", value)
    if seconds <= 0:
        raise InvalidRequest("`timeout` must be longer than nothing, such as 30s; leave it out for no limit")
    return seconds


# ----------------------------------------------------------------------
# Texts or ids of tokens, one or several: as OpenAI's API has prompts and inputs, and modeld's own. Pure.

MOST_INPUTS = 2048
"""Inputs of one request, as in OpenAI's API."""

Input = str | tuple[int, ...]
"""A text, or the ids of its tokens."""


def inputs_of(
    given: str | list[str | int | list[int]], *, field: str = "input", most: int | None = MOST_INPUTS
) -> tuple[Input, ...]:
    """Return the inputs that `field` of a body gives: a plain list of numbers is one of them.

    Raises: InvalidRequest for an empty one, for more than `most`, and for a list that mixes ids with others.
    """
    entries = [given] if isinstance(given, str) else given
    ids = [entry for entry in entries if isinstance(entry, int)]
    if ids and len(ids) < len(entries):
        raise InvalidRequest(
            f"`{field}` mixes token ids with other {field}s; put the ids into a list of their own"
        )
    if ids:
        return (tuple(ids),)
    if most is not None and len(entries) > most:
        raise InvalidRequest(f"`{field}` has {len(entries)} {field}s; send {most} at most")
    for number, entry in enumerate(entries):
        if not entry:
            raise InvalidRequest(
                f"`{field}[{number}]` is empty" if len(entries) > 1 else f"`{field}` is empty"
            )
    inputs = cast("list[str | list[int]]", entries)
    return tuple(entry if isinstance(entry, str) else tuple(entry) for entry in inputs)
