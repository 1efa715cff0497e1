# SPDX-License-Identifier: GPL-3.0-only
"""Prepare JSON schemas for llguidance: bound their size, mend, close and relax them. Pure.

llguidance keeps what it accepts, and refuses a keyword that it cannot keep. Around that, this module does
three things.

- **Mend** spells a schema as llguidance reads it, without a change of meaning: `required: null`,
  `maxLength: 2.0`, `not: {}`, `uniqueItems: false`.
- **Close** (`schema_tree`) allows an object that lists its properties no others, unless it says so. The
  standard leaves it open, and small models then go on adding keys; llama.cpp and Ollama close it as well.
  Only where this narrows what the whole schema allows: not where parts of a schema are intersected.
- **Relax** leaves out what cannot be kept, and says what that was. A schema is tried in steps (`Leniency`);
  a strict one has the first step alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import IntEnum
from typing import cast

from modeld.engine.llama.constraints.schema_tree import (
    IN_PLACE,
    NEUTRAL,
    Json,
    children,
    close_objects,
    members,
    nodes,
    rebuilt,
)
from modeld.errors import InvalidGrammar

MAX_SCHEMA_BYTES = 128 * 1024
MAX_SCHEMA_DEPTH = 48
MAX_COUNT = 1_000_000
"""The largest count of a length or of items that is passed on; llguidance keeps larger ones badly."""
_MOST_TOLD = 200
"""Characters of what is said of one thing that is left out."""
_ANNOTATIONS = frozenset(
    ("$comment", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly")
)
"""They bind nothing. A default may hold anything, also what looks like keywords."""
_VALUES = frozenset(("const", "enum"))
_COUNTS = frozenset(("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"))
_NO_EFFECT: dict[str, tuple[object, ...]] = {
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "minProperties": (0,),
    "not": (False,),
    "propertyNames": (True, {}),
    "required": (False,),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "uniqueItems": (False,),
}
"""Values with which a keyword says nothing."""
_NEEDS = {"then": "if", "else": "if", "minContains": "contains", "maxContains": "contains"}
"""Keywords that say nothing without another."""
_DRAFTS = re.compile(r"https?://json-schema\.org/(?:draft-0[4-7]|draft/(?:2019-09|2020-12))/schema#?")
_LOOKS_AROUND = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?<?[=!]|\\[1-9]|\\k<)")


_WHITESPACE = r"[ \n\t]{0,20}"


class Leniency(IntEnum):
    """How much of a schema may be left out."""

    NONE = 0
    ONE_OF = 1
    """`oneOf` is taken as `anyOf`."""
    KEYWORDS = 2
    """Keywords and formats that llguidance does not know are left out, and what it cannot ignore."""
    PATTERNS = 3
    """What may be the cause is left out, too: patterns of keys, counts beside patterns or references."""


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
    _check_depth(cast("Json", schema))
    found = _mended(cast("Json", schema))
    mended: Json = {"enum": list[object]()} if found is False else cast("Json", found)
    close_objects(mended)
    try:
        json.dumps(mended, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidGrammar("the JSON schema has half of a surrogate pair, which is no text") from error
    return mended


def json_rule(schema: Json, leniency: Leniency) -> str:
    """Return the Lark expression for JSON of a schema that `parse_schema` returned."""
    options: Json = {"whitespace_pattern": _WHITESPACE}
    if leniency >= Leniency.ONE_OF:
        options["coerce_one_of"] = True
    if leniency >= Leniency.KEYWORDS:
        options["lenient"] = True
    return "%json " + json.dumps({**relaxed(schema, leniency)[0], "x-guidance": options})


def _check_depth(node: object) -> None:
    level, depth = [node], 0
    while level:
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidGrammar(f"the JSON schema is nested deeper than {MAX_SCHEMA_DEPTH}")
        depth += 1
        level = [child for value in level for child in children(value)]


# ----------------------------------------------------------------------
# Mend: the same, spelled as llguidance reads it.


def _mended(schema: object, _place: str = "") -> object:
    """Return a schema as llguidance reads it; False for one that allows nothing, as `not: {}`."""
    if not isinstance(schema, dict):
        return schema
    given = {
        key: value
        for key, value in cast("Json", schema).items()
        if key not in _ANNOTATIONS and key != "x-guidance" and (value is not None or key in _VALUES)
    }
    node = rebuilt(given, _mended)
    if node.get("enum", ()) is None:
        del node["enum"]
    if node.get("not") in (True, {}):
        return False
    for key in _COUNTS.intersection(node):
        node[key] = _count(key, node[key])
    for name in list(node):
        if _NEEDS.get(name, name) not in node or _says_nothing(name, node[name]):
            del node[name]
    kind = node.get("type")
    if kind == "any" or "any" in members(kind):
        del node["type"]
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(exclusive), bool):  # As in draft 4, and in OpenAPI 3.0.
            strict = node.pop(exclusive)
            if strict and bound in node:
                node[exclusive] = node.pop(bound)
    draft = node.get("$schema")
    if isinstance(draft, str) and not _DRAFTS.fullmatch(draft):
        del node["$schema"]
    required, least = node.get("required"), node.get("minProperties")
    if isinstance(least, int) and len(set(map(str, members(required)))) >= least:
        del node["minProperties"]
    if isinstance(node.get("oneOf"), list):
        node["oneOf"] = [_told_apart(way, node) for way in members(node["oneOf"])]
        if "properties" in node:  # there llguidance does not see that they exclude each other
            node["allOf"] = [*members(node.get("allOf")), {"oneOf": node.pop("oneOf")}]
    if "unevaluatedProperties" in node and not node.keys() & {*IN_PLACE, "additionalProperties"}:
        node["additionalProperties"] = node.pop("unevaluatedProperties")
    return node


def _count(key: str, value: object) -> object:
    """Return a count as a whole number, as some clients write 2.0; what is none is left to llguidance."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if not 0 <= value <= MAX_COUNT:
        raise InvalidGrammar(f"{key} of the JSON schema is {value}; it can be 0 to {MAX_COUNT}")
    return int(value) if value == int(value) else value


def _says_nothing(name: str, value: object) -> bool:
    return any(type(value) is type(nothing) and value == nothing for nothing in _NO_EFFECT.get(name, ()))


def _told_apart(way: object, node: Json) -> object:
    """Return one of `oneOf` with what is required alongside it, which may tell it from the others."""
    if not isinstance(way, dict):
        return way
    told = cast("Json", way)
    if "$ref" in told:
        return told
    required = dict.fromkeys(map(str, [*members(told.get("required")), *members(node.get("required"))]))
    if required:
        told["required"] = list(required)
    if "type" in node:
        told.setdefault("type", node["type"])
    return told


# ----------------------------------------------------------------------
# Relax: leave out what llguidance cannot even ignore, and say so.


def relaxed(schema: Json, leniency: Leniency) -> tuple[Json, tuple[str, ...]]:
    """Return a parsed schema without what cannot be kept, and what that was, with its place.

    llguidance itself takes `oneOf` as `anyOf`, and leaves out the keywords that it does not know.
    """
    if leniency < Leniency.KEYWORDS:
        return schema, ()
    told: list[str] = []
    anchored = any("$id" in node for node in nodes(schema))
    further = leniency >= Leniency.PATTERNS

    def relax(part: object, place: str) -> object:
        if not isinstance(part, dict):
            return part
        node = rebuilt(cast("Json", part), lambda inner, step: relax(inner, place + step))
        told.extend(
            f"{name} {json.dumps(node.pop(name))} at {place or '/'}"[:_MOST_TOLD]
            for name in _to_leave_out(node, anchored=anchored, further=further)
        )
        return node

    return cast("Json", relax(schema, "")), tuple(told)


def _to_leave_out(node: Json, *, anchored: bool, further: bool) -> Iterator[str]:
    reference, required = node.get("$ref"), node.get("required")
    if isinstance(reference, str) and not reference.startswith("#") and not anchored:
        yield "$ref"
    if required is True:
        yield "required"
    if isinstance(node.get("pattern"), str) and _LOOKS_AROUND.search(str(node["pattern"])):
        yield "pattern"
    named = node.get("patternProperties")
    if isinstance(named, dict) and (further or any(map(_LOOKS_AROUND.search, cast("Json", named)))):
        yield "patternProperties"
        if "additionalProperties" in node:
            yield "additionalProperties"
    properties = node.get("properties")
    known = set(cast("Json", properties)) if isinstance(properties, dict) else set[str]()
    if "properties" in node and known - set(map(str, members(required))):
        yield from (name for name in ("minProperties", "maxProperties") if name in node)
    if further and "pattern" in node:
        yield from (name for name in ("minLength", "maxLength") if name in node)
    if further and "$ref" in node:
        yield from (name for name in list(node) if name not in {"$ref", *NEUTRAL})
