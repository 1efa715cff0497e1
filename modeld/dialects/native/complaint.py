# SPDX-License-Identifier: GPL-3.0-only
"""Turns msgspec's account of a bad body into a sentence that names the key. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import msgspec

from modeld.config.nearest import did_you_mean
from modeld.core.request import Pooling, Priority
from modeld.dialects.native.wire import InferBody, MessageBody, TriggerBody

_PLACE = re.compile(r"(?P<what>.*?)(?: - at `(?P<place>[^`]*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<types>[^`]*)`(?P<limit>[^`]*?)(?:, got `(?P<got>\w+)`)?")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")
_INVALID = re.compile(r"Invalid enum value '?(?P<value>.*?)'?", re.DOTALL)

_WORDS: Mapping[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def complain(reason: str, body: type[msgspec.Struct] = InferBody) -> str:
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
        choices = ", ".join(Pooling if place == "$.pooling" else Priority)
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
    if place.startswith("$.messages"):
        return MessageBody.__struct_fields__
    if place.startswith("$.grammar_triggers"):
        return TriggerBody.__struct_fields__
    return body.__struct_fields__


def _expected(name: str, types: str, limit: str, got: str | None) -> str:
    words = [_WORDS.get(word, word) for word in types.split(" | ") if word != "null" or types == "null"]
    if "a number" in words and "a whole number" in words:
        words.remove("a whole number")
    wanted = " or ".join(words)
    if limit:
        return f"{name} must be {wanted} {limit}"
    return f"{name} must be {wanted}" + (f", not {_WORDS.get(got, got)}" if got else "")
