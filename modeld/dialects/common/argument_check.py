# SPDX-License-Identifier: GPL-3.0-only
"""Check whether arguments fit the schema of a function, in bounded time: both come from outside. Pure.

This runs on the event loop. So each keyword that is applied costs steps, of which an answer has a limited
number; references lead into the schema itself and nowhere else; and what is slow by its nature is taken as
fitting: `pattern` and `patternProperties` (Python's `re` may backtrack for ever), `unevaluatedProperties`,
`unevaluatedItems`, `dependentRequired`, `$dynamicRef`; so is `format`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, cast
from urllib.parse import unquote

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import create
from referencing import Registry

from modeld.domain.request import Tool

MOST_STEPS = 5_000
"""For all calls of an answer. A step takes up to some 20 us; the call of a usual function some ten steps."""
_CHARACTERS_A_STEP = 2048
"""Of arguments and schema: messages of errors are made of them, also of those that nobody reads."""
_LONGEST_REFERENCE = 1024
_OPEN = frozenset(
    (
        *("additionalProperties", "patternProperties", "unevaluatedProperties"),
        *("$ref", "allOf", "anyOf", "oneOf", "if"),
    )
)
"""Keywords that tell of properties which are not among `properties`."""

Json = dict[str, Any]
Keyword = Callable[[Any, Any, Any, Any], Iterable[ValidationError] | None]


class _Unknown(Exception):
    """It cannot be told whether arguments fit."""


class ArgumentCheck:
    """Checks the calls of one answer."""

    def __init__(self) -> None:
        self._left = MOST_STEPS
        self._price = 1
        self._schema: Json = {}
        self._decoded: dict[str, tuple[object, Json, Json]] = {}
        """By function: its schema as it is, in the present dialect, and closed."""
        self._referred: dict[str, Any] = {}
        """By reference, of the function at hand."""

    def fits(self, tool: Tool, arguments: str) -> bool:
        """Whether the JSON of an object fits a function's schema; not, if that takes too long to tell."""
        self._price = 1 + (len(arguments) + len(tool.parameters)) // _CHARACTERS_A_STEP
        token = _check.set(self)
        try:
            # Decoding, and looking at how large it is: some 140,000 characters are too many.
            self.spend(self._price)
            given = msgspec.json.decode(arguments)
            quoted, self._schema, closed = self._schema_of(tool)
            if given == quoted:
                return False  # The function's definition.
            self._referred.clear()
            return _Bounded(closed, registry=Registry()).is_valid(given)
        except Exception:  # noqa: BLE001  # nobody has checked the schema, and jsonschema raises a dozen types for what is wrong with one
            return False
        finally:
            _check.reset(token)

    def _schema_of(self, tool: Tool) -> tuple[object, Json, Json]:
        if tool.name not in self._decoded:
            schema = json.loads(tool.parameters, object_hook=_in_present_dialect)
            self._decoded[tool.name] = msgspec.json.decode(tool.parameters), schema, _closed(schema)
        return self._decoded[tool.name]

    def spend(self, steps: int) -> None:
        """Count steps. Raises: _Unknown when there are no more."""
        self._left -= steps * self._price
        if self._left < 0:
            raise _Unknown

    def spend_on(self, value: Any) -> None:
        """Count a step for each value within a value."""
        values = [value]
        while values:
            value = values.pop()
            self.spend(1)
            if isinstance(value, dict | list):
                values += value.values() if isinstance(value, dict) else value

    def referred(self, reference: str) -> Any:
        """Return the part of the schema that a reference leads to. Raises: _Unknown."""
        if reference in self._referred:
            return self._referred[reference]
        if (reference != "#" and not reference.startswith("#/")) or len(reference) > _LONGEST_REFERENCE:
            raise _Unknown
        node: Any = self._schema
        for part in unquote(reference).split("/")[1:]:
            self.spend(1)
            node = node[int(part) if isinstance(node, list) else part.replace("~1", "/").replace("~0", "~")]
        self._referred[reference] = node
        return node


_check: ContextVar[ArgumentCheck] = ContextVar("argument_check")


def _bounded(name: str, keyword: Keyword) -> Keyword:
    """Return a keyword that costs steps."""

    def bounded(validator: Any, value: Any, instance: Any, schema: Json) -> Iterable[ValidationError]:
        check = _check.get()
        check.spend(1 + _length(value) + _length(instance))
        if name in ("const", "enum"):
            check.spend_on(value)
        if name == "required" and not isinstance(value, list):
            raise _Unknown  # Of a string each letter would be required.
        if name == "additionalProperties" and "patternProperties" in schema:
            return ()
        return keyword(validator, value, instance, schema) or ()

    return bounded


def _reference(validator: Any, value: str, instance: Any, _: Json) -> Iterator[ValidationError]:
    yield from validator.descend(instance, _check.get().referred(value))


def _unique_items(_: Any, value: bool, instance: Any, __: Json) -> Iterator[ValidationError]:
    """Compare items by their JSON: jsonschema compares each with each."""
    if value and isinstance(instance, list):
        items = cast("list[object]", instance)
        _check.get().spend_on(items)
        if len({msgspec.json.encode(item, order="sorted") for item in items}) < len(items):
            yield ValidationError("two items are equal")


_NOT_EVALUATED = frozenset(
    (
        *("$dynamicRef", "dependentRequired", "format", "pattern", "patternProperties"),
        *("unevaluatedItems", "unevaluatedProperties"),
    )
)
_KEYWORDS = {
    **{name: each for name, each in Draft202012Validator.VALIDATORS.items() if name not in _NOT_EVALUATED},
    "$ref": _reference,
    "uniqueItems": _unique_items,
}
_Bounded = create(
    meta_schema={},  # Without one, `$id` and anchors mean nothing, and nobody looks for them.
    validators={name: _bounded(name, keyword) for name, keyword in _KEYWORDS.items()},
    type_checker=Draft202012Validator.TYPE_CHECKER,
)


def _length(value: Any) -> int:
    return len(cast("list[object]", value)) if isinstance(value, dict | list) else 0


def _closed(schema: Json) -> Json:
    """Return the schema of arguments without unknown ones, unless it says more of them than `properties`.

    So a grammar reads it, too, and so the schema of a function, quoted, is not what that takes.
    """
    if "properties" not in schema or not _OPEN.isdisjoint(schema):
        return schema
    return {**schema, "additionalProperties": False}


def _in_present_dialect(node: Json) -> Json:
    """Return a schema in JSON Schema's present dialect, where it is written in an older one or in OpenAPI's.

    `$schema` goes: it would have jsonschema take another class, without the bounds of this one.
    """
    if isinstance(node.get("$schema"), str):
        del node["$schema"]
    if isinstance(node.get("items"), list):  # draft 7
        node["prefixItems"] = node.pop("items")
        if "additionalItems" in node:
            node["items"] = node.pop("additionalItems")
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(node.get(strict), bool) and node.pop(strict) and bound in node:  # draft 4
            node[strict] = node.pop(bound)
    if node.get("required", ()) is None:  # Go
        del node["required"]
    if node.get("nullable") is True and isinstance(node.get("type"), str):  # OpenAPI 3.0
        node["type"] = [node["type"], "null"]
    return node
