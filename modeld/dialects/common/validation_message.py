# SPDX-License-Identifier: GPL-3.0-only
"""Explain msgspec's validation errors in sentences that name the key. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache

import msgspec
from msgspec import inspect

from modeld.config.values import did_you_mean

PLACE = re.compile(r"(?P<what>.*?)(?: - at `(?P<place>[^`]*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<types>[^`]*)`(?P<limit>[^`]*?)(?:, got `(?P<got>\w+)`)?")
UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")
_INVALID = re.compile(r"Invalid (?:enum )?value '?(?P<value>.*?)'?", re.DOTALL)

STEP = re.compile(r"\.[^.\[]+|\[[^\]]*\]")

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
    match = PLACE.fullmatch(reason)
    what, place = (match["what"], match["place"] or "$") if match else (reason, "$")
    name = f"`{place.removeprefix('$').removeprefix('.')}`" if place != "$" else "the body"
    if found := UNKNOWN.fullmatch(what):
        key = found["key"][:80]
        inside = "" if place == "$" else f" in {name}"
        return f'unknown key "{key}"{inside}{did_you_mean(key, keys_at(place, body))}'
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


def keys_at(place: str, body: type[msgspec.Struct]) -> Collection[str]:
    """Return the keys that there could be at this place of a body."""
    structs = [kind for kind in kinds_at(place, body) if isinstance(kind, inspect.StructType)]
    return [field.encode_name for struct in structs for field in struct.fields]


def _choices(place: str, body: type[msgspec.Struct]) -> Collection[str]:
    """Return the values that there could be at this place of a body, if it takes one of a few."""
    found: list[str] = []
    for kind in kinds_at(place, body):
        if isinstance(kind, inspect.EnumType):
            found += [str(choice.value) for choice in kind.cls]
        elif isinstance(kind, inspect.LiteralType):
            found += [str(value) for value in kind.values]
        elif isinstance(kind, inspect.StructType) and kind.tag is not None:
            found.append(str(kind.tag))
    return found


def kinds_at(place: str, body: type[msgspec.Struct]) -> list[inspect.Type]:
    """Return all types that a value at this place could have: `$.messages[...].role`."""
    kinds = list(_members(_type(body)))
    for step in STEP.findall(place):
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
