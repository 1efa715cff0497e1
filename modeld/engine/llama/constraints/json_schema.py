# SPDX-License-Identifier: GPL-3.0-only
"""Prepare JSON schemas for llguidance: bound their size, and mend what clients write and it refuses. Pure.

llguidance keeps what it accepts, and refuses a keyword that it cannot keep. So a schema is tried in steps
(`Leniency`): as it is; with `oneOf` taken as `anyOf`; without the keywords that cannot be kept; and without
patterns. A strict schema has the first step alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import IntEnum
from typing import cast

from modeld.errors import InvalidGrammar

Json = dict[str, object]

MAX_SCHEMA_BYTES = 128 * 1024
MAX_SCHEMA_DEPTH = 48
MAX_COUNT = 1_000_000
"""The largest count of a length or of items that is passed on; llguidance keeps larger ones badly."""
_ANNOTATIONS = frozenset(
    ("$comment", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly")
)
"""They bind nothing. A default may hold anything, also what looks like keywords."""
_VALUES = frozenset(("const", "enum"))
_ONE = frozenset(
    (
        *("additionalItems", "additionalProperties", "contains", "else", "if", "not", "propertyNames"),
        *("then", "unevaluatedItems", "unevaluatedProperties"),
    )
)
_MANY = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_NAMED = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))
_COUNTS = frozenset(("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"))
_COMBINED = frozenset(("$ref", "allOf", "anyOf", "if", "oneOf", "unevaluatedProperties"))
"""Alongside these an object is not closed: they may bring properties of their own."""
_WHITESPACE = r"[ \n\t]{0,20}"


class Leniency(IntEnum):
    """How much of a schema may be left out."""

    NONE = 0
    ONE_OF = 1
    """`oneOf` is taken as `anyOf`."""
    KEYWORDS = 2
    """Keywords and formats that llguidance does not know are left out, too."""
    PATTERNS = 3
    """Patterns are left out, too: it has no lookaround and no back references."""


def parse_schema(text: str) -> Json:
    """Return a schema of a size that can be compiled, mended. Raises: InvalidGrammar with the reason."""
    size = len(text.encode("utf-8", errors="replace"))
    if size > MAX_SCHEMA_BYTES:
        raise InvalidGrammar(f"the JSON schema has {size} bytes; the most is {MAX_SCHEMA_BYTES}")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidGrammar(f"the JSON schema is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise InvalidGrammar("the JSON schema is not an object")
    schema = cast("Json", schema)
    _check_depth(schema)
    mended = _mended(schema, closes="allOf" not in text and "unevaluated" not in text)
    try:
        json.dumps(mended, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidGrammar("the JSON schema has half of a surrogate pair, which is no text") from error
    return cast("Json", mended)


def json_rule(schema: Json, leniency: Leniency) -> str:
    """Return the Lark expression for JSON of a schema that `parse_schema` returned."""
    options: Json = {"whitespace_pattern": _WHITESPACE}
    if leniency >= Leniency.ONE_OF:
        options["coerce_one_of"] = True
    if leniency >= Leniency.KEYWORDS:
        options["lenient"] = True
    if leniency >= Leniency.PATTERNS:
        schema = cast("Json", _walked(schema, _without_pattern))
    return "%json " + json.dumps({**schema, "x-guidance": options})


def _without_pattern(schema: Json) -> Json:
    return {key: value for key, value in schema.items() if key != "pattern"}


def _check_depth(node: object) -> None:
    level, depth = [node], 0
    while level:
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidGrammar(f"the JSON schema is nested deeper than {MAX_SCHEMA_DEPTH}")
        depth += 1
        level = [child for value in level for child in _children(value)]


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast("Json", value).values())
    return cast("list[object]", value) if isinstance(value, list) else []


def _walked(node: object, change: Callable[[Json], Json]) -> object:
    """Return a schema with `change` applied to each schema in it, the innermost first."""
    if not isinstance(node, dict):
        return node
    schema: Json = {}
    for key, value in cast("Json", node).items():
        if key in _ONE or (key == "items" and not isinstance(value, list)):
            schema[key] = _walked(value, change)
        elif (key in _MANY or key == "items") and isinstance(value, list):
            schema[key] = [_walked(each, change) for each in cast("list[object]", value)]
        elif key in _NAMED and isinstance(value, dict):
            schema[key] = {name: _walked(each, change) for name, each in cast("Json", value).items()}
        else:
            schema[key] = value
    return change(schema)


def _mended(schema: object, *, closes: bool) -> object:
    """Return a schema as llguidance takes it. Raises: InvalidGrammar for a reference that leads outside.

    `closes`: an object that lists its properties has no others, unless it says so. The standard leaves it
    open, and small models then go on adding keys; llama.cpp and Ollama close it as well.
    """

    def mend(schema: Json) -> Json:
        out = {
            key: value
            for key, value in schema.items()
            if key not in _ANNOTATIONS and key != "x-guidance" and (value is not None or key in _VALUES)
        }
        for key in _COUNTS.intersection(out):
            out[key] = _count(key, out[key])
        kind = out.get("type")
        if kind == "any" or (isinstance(kind, list) and "any" in kind):
            del out["type"]
        for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if isinstance(out.get(exclusive), bool):  # As in draft 4, and in OpenAPI 3.0.
                strict = out.pop(exclusive)
                if strict and bound in out:
                    out[exclusive] = out.pop(bound)
        reference = out.get("$ref")
        if isinstance(reference, str) and not (reference == "#" or reference.startswith("#/")):
            raise InvalidGrammar(
                f"$ref {reference[:100]!r} of the JSON schema leads outside; it can only begin with #/"
            )
        if isinstance(out.get("properties"), dict):
            properties = cast("Json", out["properties"])
            out["properties"] = {
                name: False if value in ({"not": {}}, {"not": True}) else value
                for name, value in properties.items()
            }
            if closes and not _COMBINED.intersection(out) and "patternProperties" not in out:
                out.setdefault("additionalProperties", False)
        return out

    return _walked(schema, mend)


def _count(key: str, value: object) -> object:
    """Return a count as a whole number, as some clients write 2.0; what is none is left to llguidance."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if not 0 <= value <= MAX_COUNT:
        raise InvalidGrammar(f"{key} of the JSON schema is {value}; it can be 0 to {MAX_COUNT}")
    return int(value) if value == int(value) else value
