# SPDX-License-Identifier: GPL-3.0-only
"""Walk JSON schemas: their parts, their references, and which of their objects may be closed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast
from urllib.parse import unquote

Json = dict[str, object]

NEUTRAL = frozenset(("$defs", "$id", "$schema", "definitions", "nullable", "type"))
"""Beside these another keyword is still the only one that says what an object may have."""
_ONE = frozenset(
    (
        *("additionalItems", "additionalProperties", "contains", "else", "if", "not", "propertyNames"),
        *("then", "unevaluatedItems", "unevaluatedProperties"),
    )
)
_MANY = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_NAMED = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))
IN_PLACE = (
    "$dynamicRef",
    "$ref",
    "allOf",
    "anyOf",
    "dependentSchemas",
    "else",
    "if",
    "not",
    "oneOf",
    "then",
)
"""Keywords that apply further schemas to the same value."""
_OPEN = ("additionalProperties", "patternProperties", "propertyNames", "unevaluatedProperties")
"""Keywords that say something of the properties that are not listed."""


def children(value: object) -> list[object]:
    """Return what is directly within a JSON value."""
    if isinstance(value, dict):
        return list(cast("Json", value).values())
    return members(value)


def members(value: object) -> list[object]:
    """Return the members of a list; none of anything else."""
    return cast("list[object]", value) if isinstance(value, list) else []


def rebuilt(node: Json, change: Callable[[object, str], object]) -> Json:
    """Return a copy with each schema directly within it changed; `change` is told its place, too."""
    copy: Json = {}
    for key, value in node.items():
        if key in _ONE or (key == "items" and not isinstance(value, list)):
            copy[key] = change(value, f"/{key}")
        elif (key in _MANY or key == "items") and isinstance(value, list):
            parts = cast("list[object]", value)
            copy[key] = [change(part, f"/{key}/{at}") for at, part in enumerate(parts)]
        elif key in _NAMED and isinstance(value, dict):
            named = cast("Json", value)
            copy[key] = {name: change(part, f"/{key}/{name}") for name, part in named.items()}
        else:
            copy[key] = value
    return copy


def nodes(schema: Json) -> Iterator[Json]:
    """Yield a schema, and all within it that are no mere truth values."""
    found: list[object] = []
    rebuilt(schema, lambda part, _place: found.append(part))
    yield schema
    for part in found:
        if isinstance(part, dict):
            yield from nodes(cast("Json", part))


# ----------------------------------------------------------------------
# Close: no further properties where an object lists its own, if that only narrows what is allowed.


def close_objects(root: Json) -> None:
    """Forbid further properties where an object lists its own, if no other schema binds the same value."""
    closable: dict[int, Json] = {}
    shared: set[int] = set()
    seen: set[tuple[int, bool]] = set()
    todo: list[tuple[object, bool]] = [(root, True)]
    while todo:
        schema, alone = todo.pop()
        if not isinstance(schema, dict) or (id(cast("Json", schema)), alone) in seen:
            continue
        node = cast("Json", schema)
        seen.add((id(node), alone))
        if not alone:
            shared.add(id(node))
        elif _lists_its_own(node):
            closable[id(node)] = node
        todo += _applied(root, node, alone)
    for number, node in closable.items():
        if number not in shared:
            node["additionalProperties"] = False


def _applied(root: Json, node: Json, alone: bool) -> Iterator[tuple[object, bool]]:
    """Yield each schema that one applies, and whether no other schema applies to the same value."""
    in_place = [name for name in IN_PLACE if name in node]
    others = node.keys() - NEUTRAL
    sole = alone and len(in_place) <= 1 and others <= set(in_place)
    for name in in_place:
        found = node[name]
        if name == "$ref":
            yield _target(root, found), sole
        elif name in ("allOf", "anyOf", "oneOf") and isinstance(found, list):
            ways = cast("list[object]", found)
            one = len(ways) == 1
            for way in ways:
                narrows = name == "anyOf" or one or (name == "oneOf" and _no_other_object(ways, way))
                yield way, sole and narrows
        else:
            yield from ((part, False) for part in (found, *children(found)))
    inner = alone and not in_place
    for name in ("additionalProperties", "items", "contains", "propertyNames"):
        yield from ((part, inner) for part in (node.get(name), *members(node.get(name))))
    for name in ("properties", "patternProperties", "prefixItems"):
        named = node.get(name)
        yield from ((part, inner) for part in (children(named) if name != "prefixItems" else members(named)))


def _lists_its_own(node: Json) -> bool:
    """Whether it has `properties`, and nothing is said of any others."""
    properties = node.get("properties")
    if not isinstance(properties, dict) or node.keys() & {*IN_PLACE, *_OPEN}:
        return False
    return set(map(str, members(node.get("required")))) <= set(cast("Json", properties))


def _no_other_object(ways: list[object], one: object) -> bool:
    """Whether none of the others can be an object, so that this one may be narrowed among `oneOf`."""
    kinds = [cast("Json", way).get("type") for way in ways if way is not one and isinstance(way, dict)]
    return all(isinstance(kind, str) and kind != "object" for kind in kinds)


def _target(root: Json, reference: object) -> object:
    """Return the schema that a reference leads to; None if it is not found by its place in the root."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    found = cast("object", root)
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = cast("Json", found).get(key)
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(cast("list[object]", found)):
            found = cast("list[object]", found)[int(key)]
        else:
            return None
    return found
