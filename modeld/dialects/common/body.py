# SPDX-License-Identifier: GPL-3.0-only
"""Decode JSON bodies, explain what is wrong with them, and read the keys most dialects share. Pure."""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from functools import cache
from typing import TypeVar, cast

import msgspec
from msgspec import inspect

from modeld.config.values import BadValue, did_you_mean, parse_duration
from modeld.errors import InvalidRequest

# ----------------------------------------------------------------------
# Turns msgspec's account of a bad body into a sentence that names the key. Pure.

_PLACE = re.compile(r"(?P<what>.*?)(?: - at `(?P<place>[^`]*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<types>[^`]*)`(?P<limit>[^`]*?)(?:, got `(?P<got>\w+)`)?")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")
_INVALID = re.compile(r"Invalid (?:enum )?value '?(?P<value>.*?)'?", re.DOTALL)

_STEP = re.compile(r"\.[^.\[]+|\[[^\]]*\]")

_WORDS: Mapping[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def explain(reason: str, body: type[msgspec.Struct]) -> str:
    """Return a sentence for the text of a `msgspec.ValidationError` about a body of this type."""
    match = _PLACE.fullmatch(reason)
    what, place = (match["what"], match["place"] or "$") if match else (reason, "$")
    name = f"`{place.removeprefix('$').removeprefix('.')}`" if place != "$" else "the body"
    if found := _UNKNOWN.fullmatch(what):
        key = found["key"][:80]
        inside = "" if place == "$" else f" in {name}"
        return f'unknown key "{key}"{inside}{did_you_mean(key, _keys(place, body))}'
    if found := _MISSING.fullmatch(what):
        return f'{name} lacks the key "{found["key"]}"'
    if found := _INVALID.fullmatch(what):
        choices = ", ".join(_choices(place, body))
        return f'{name} must be one of {choices}, not "{found["value"][:80]}"'
    if found := _EXPECTED.fullmatch(what):
        return _expected(name, found["types"], found["limit"].strip(), found["got"])
    return f"{name}: {what[:1].lower()}{what[1:]}"


_ESCAPE = re.compile(r"\\u[dD]([89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F]|[89a-fA-F])|\\.", re.DOTALL)


def malformed(text: str, reason: str) -> str:
    """Return why `text` is no JSON; half of a surrogate pair is worth a sentence of its own."""
    halves = (match for match in _ESCAPE.finditer(text) if match[1] and len(match[1]) == 1)
    if any(halves):
        return "the body holds an escape such as \\ud83d that is only half of a character"
    return f"the body is not JSON: {reason.removeprefix('JSON is malformed: ')}"


def _keys(place: str, body: type[msgspec.Struct]) -> Collection[str]:
    """Return the keys that there could be at this place of a body."""
    structs = [kind for kind in _kinds_at(place, body) if isinstance(kind, inspect.StructType)]
    return [field.encode_name for struct in structs for field in struct.fields]


def _choices(place: str, body: type[msgspec.Struct]) -> Collection[str]:
    """Return the values that there could be at this place of a body, if it takes one of a few."""
    found: list[str] = []
    for kind in _kinds_at(place, body):
        if isinstance(kind, inspect.EnumType):
            found += [str(choice.value) for choice in kind.cls]
        elif isinstance(kind, inspect.LiteralType):
            found += [str(value) for value in kind.values]
        elif isinstance(kind, inspect.StructType) and kind.tag is not None:
            found.append(str(kind.tag))
    return found


def _kinds_at(place: str, body: type[msgspec.Struct]) -> list[inspect.Type]:
    """Return all types that a value at this place could have: `$.messages[...].role`."""
    kinds = list(_members(_type(body)))
    for step in _STEP.findall(place):
        below = [child for kind in kinds for child in _below(kind, step)]
        if not below:
            break  # The key that tells members of a union apart is no field: the union is what is meant.
        kinds = [member for child in below for member in _members(child)]
    return kinds


@cache
def _type(body: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(body)


def _members(kind: inspect.Type) -> Iterable[inspect.Type]:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        return [member for part in kind.types for member in _members(part)]
    return [kind]


def _below(kind: inspect.Type, step: str) -> Iterable[inspect.Type]:
    match kind:
        case inspect.StructType(fields=fields):
            return [field.type for field in fields if f".{field.encode_name}" == step]
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return [item]
        case inspect.TupleType(item_types=items):
            return items
        case inspect.DictType(value_type=value):
            return [value]
        case _:
            return []


def _expected(name: str, types: str, limit: str, got: str | None) -> str:
    words = [_WORDS.get(word, word) for word in types.split(" | ") if word != "null" or types == "null"]
    if "a number" in words and "a whole number" in words:
        words.remove("a whole number")
    wanted = " or ".join(words)
    if limit:
        return f"{name} must be {wanted} {limit}"
    other = (
        "a number with a fraction"
        if got == "float" and "a whole number" in words
        else _WORDS.get(got or "", got)
    )
    return f"{name} must be {wanted}" + (f", not {other}" if got else "")


# ----------------------------------------------------------------------

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
        raise InvalidRequest(explain(str(error), decoder.type)) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidRequest(malformed(text, str(error))) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def _decode(text: str | bytes, decoder: msgspec.json.Decoder[Body]) -> Body:
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
            changed = found and _with_digits(text, _STEP.findall(found["place"]))
            if not changed or changed == text:
                raise
            text = changed
    return decoder.decode(text)


_MOST_PLACES = 64
"""Keys of one body that take whole numbers; no dialect has as many."""
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
