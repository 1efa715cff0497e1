# SPDX-License-Identifier: GPL-3.0-only
"""Turns the constraint of a request into GBNF that llama.cpp may safely be given.

What passes here is sound in syntax, bounded in size, not left-recursive, and not so ambiguous that
llama.cpp would lose itself in it (`stacks`). What is slow all the same ends in `matcher`.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import msgspec

from modeld.domain.request import Constraint, ConstraintKind
from modeld.engine.llama.constraints.converter import Converter
from modeld.engine.llama.constraints.gbnf import MAX_REPETITIONS, check_gbnf
from modeld.errors import InvalidGrammar

MAX_SCHEMA_BYTES = 128 * 1024
MAX_SCHEMA_DEPTH = 48
MAX_PROPERTIES = 128
MAX_PATTERN = 2048
"""Characters of one pattern; the converter's time grows with their square."""
_ANYTHING = {"type": "value"}
"""What the converter calls any JSON value."""
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_REASON_CHARACTERS = 200


class Grammar(msgspec.Struct, frozen=True):
    """A grammar in GBNF. `tokens`: the single tokens that it names, control tokens perhaps.

    It binds the text from the first trigger on, or all of it where there is none.
    """

    gbnf: str
    tokens: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    trigger_tokens: tuple[int, ...] = ()
    opening_words: tuple[str, ...] = ()
    """Triggers only where nothing but blanks, and thoughts if they are known, was written before them."""
    thought: str | None = None
    """None: thoughts are text like any other. Else no trigger counts within one; the text begins in that of
    this marker (`domain.tool_calls`), or in none if it is empty."""

    @property
    def lazy(self) -> bool:
        """Whether text is free until a trigger comes."""
        return bool(self.trigger_words or self.trigger_tokens or self.opening_words)


def compile_constraint(constraint: Constraint) -> Generator[None, None, Grammar]:
    """Return the grammar of a constraint; in parts (`slices`), since a large one takes a second.

    Raises: InvalidGrammar with the reason.
    """
    words, tokens = constraint.trigger_words, constraint.trigger_tokens
    if constraint.kind is ConstraintKind.GRAMMAR:
        named = yield from check_gbnf(constraint.text)
        return Grammar(constraint.text, named, words, tokens)
    gbnf = _from_schema(constraint.text)
    yield
    yield from check_gbnf(gbnf)
    return Grammar(gbnf, trigger_words=words, trigger_tokens=tokens)


def rules_of(text: str) -> tuple[list[str], str]:
    """Return the names of the rules of what a schema's `anyOf` lists, in its order, and all their rules.

    There is none called `root` among them. Raises: InvalidGrammar.
    """
    with _told():
        return Converter().alternatives(_checked(text))


def _from_schema(text: str) -> str:
    with _told():
        return Converter().convert(_checked(text))


def _checked(text: str) -> dict[str, object]:
    """Return a schema of a size that can be converted. Raises: InvalidGrammar."""
    size = len(text.encode("utf-8", errors="replace"))
    if size > MAX_SCHEMA_BYTES:
        raise InvalidGrammar(f"the JSON schema has {size} bytes; the most is {MAX_SCHEMA_BYTES}")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidGrammar(f"the JSON schema is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise InvalidGrammar("the JSON schema is not an object")
    schema = cast("dict[str, object]", schema)
    _check_size(schema, 0)
    if "$ref" in schema:  # the converter overlooks the definitions beside a reference at the top
        schema["anyOf"] = [{"$ref": schema.pop("$ref")}]
    return schema


@contextmanager
def _told() -> Generator[None]:
    """Say in words why a schema cannot be converted. Raises: InvalidGrammar."""
    try:
        yield
    except KeyError as error:
        raise InvalidGrammar(f"the JSON schema refers to {error}, which it does not have") from error
    except RecursionError as error:
        raise InvalidGrammar("the JSON schema is nested too deeply, or refers to itself") from error
    except (AssertionError, AttributeError, IndexError, TypeError, ValueError) as error:
        reason = str(error)[:_REASON_CHARACTERS]
        raise InvalidGrammar(f"the JSON schema cannot be turned into a grammar: {reason}") from error


def _check_size(node: object, depth: int) -> None:
    """Refuse what the converter would write out at length; write the schema `true` so that it knows it."""
    if depth > MAX_SCHEMA_DEPTH:
        raise InvalidGrammar(f"the JSON schema is nested deeper than {MAX_SCHEMA_DEPTH}")
    if isinstance(node, list):
        for child in cast("list[object]", node):
            _check_size(child, depth + 1)
    if not isinstance(node, dict):
        return
    schema = cast("dict[str, object]", node)
    for name in _COUNTS:
        count = schema.get(name)
        if isinstance(count, int | float) and not 0 <= count <= MAX_REPETITIONS:
            raise InvalidGrammar(f"{name} of the JSON schema is {count}; it can be 0 to {MAX_REPETITIONS}")
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and len(pattern) > MAX_PATTERN:
        raise InvalidGrammar(
            f"a pattern of the JSON schema has {len(pattern)} characters; the most is {MAX_PATTERN}"
        )
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#/"):
        raise InvalidGrammar(
            f"$ref {reference!r} of the JSON schema leads outside; it can only begin with #/"
        )
    if schema.get("items") in (True, {}):
        schema["items"] = dict(_ANYTHING)
    if isinstance(schema.get("properties"), dict):
        properties = cast("dict[str, object]", schema["properties"])
        if len(properties) > MAX_PROPERTIES:
            raise InvalidGrammar(
                f"an object of the JSON schema has {len(properties)} properties; the most is {MAX_PROPERTIES}"
            )
        for name in [name for name, value in properties.items() if value is True]:
            properties[name] = dict(_ANYTHING)
    for child in schema.values():
        _check_size(child, depth + 1)
