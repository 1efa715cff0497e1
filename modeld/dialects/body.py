# SPDX-License-Identifier: GPL-3.0-only
"""What bodies of all dialects have in common: how JSON is read, and terms that most of them know. Pure."""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from decimal import Decimal
from typing import TypeVar

import msgspec

from modeld.config.values import BadValue, parse_duration
from modeld.dialects.complaint import complain, malformed
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
        return _decode(text, decoder)
    except msgspec.ValidationError as error:
        raise InvalidRequest(complain(str(error), decoder.type)) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidRequest(malformed(text, str(error))) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def _decode(text: str, decoder: msgspec.json.Decoder[Body]) -> Body:
    """Decode; a whole number may be written with a fraction of zero or an exponent, as in `4096.0`.

    JSON knows one kind of number, and many clients have only floats. msgspec takes these for whole numbers
    only together with texts such as "4096", so a body that has them is decoded again, with digits alone.
    """
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
    return decoder.decode(_STRING_OR_FLOAT.sub(_in_digits, text))


_STRING_OR_FLOAT = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+(?:[eE][+-]?\d{1,3}(?!\d))?|[eE][+-]?\d{1,3}(?!\d))', re.ASCII
)
"""No exponent of more than three digits: floats have none, and digits for it would fill the memory."""


def _in_digits(match: re.Match[str]) -> str:
    """Return a float in digits if it is a whole number, and anything else as it is."""
    text = match[0]
    if text.startswith('"'):
        return text
    value = Decimal(text)
    return f"{value:.0f}" if value == value.to_integral_value() else text


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
