# SPDX-License-Identifier: GPL-3.0-only
"""The JSON schema of a call: an object of the name of a function and its arguments. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec

from modeld.core.request import Tool

Json = dict[str, object]


def schema_of_call(
    tools: Sequence[Tool], or_else: str | None = None, *, arguments: str = "arguments"
) -> Json:
    """Return the schema of a call of one of these functions: `anyOf`, in their order.

    Args:
      tools: the functions.
      or_else: JSON text of a schema that it may satisfy instead.
      arguments: the key of the arguments.
    """
    ways: list[Json] = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, arguments: {"$ref": f"#/$defs/call{number}"}},
            "required": ["name", arguments],
            "additionalProperties": False,
        }
        for number, tool in enumerate(tools)
    ]
    definitions = _definitions(tools)
    if or_else is not None:
        definitions["answer"] = _moved(msgspec.json.decode(or_else), "#/$defs/answer")
        ways.append({"$ref": "#/$defs/answer"})
    return {"$defs": definitions, "anyOf": ways}


def schema_of_arguments(tools: Sequence[Tool]) -> Json:
    """Return the schema of the arguments alone of one of these functions: `anyOf`, in their order."""
    ways: list[Json] = [{"$ref": f"#/$defs/call{number}"} for number in range(len(tools))]
    return {"$defs": _definitions(tools), "anyOf": ways}


def _definitions(tools: Sequence[Tool]) -> Json:
    return {
        f"call{number}": _moved(_arguments(tool), f"#/$defs/call{number}")
        for number, tool in enumerate(tools)
    }


def _arguments(tool: Tool) -> Json:
    """Return the schema of the arguments; one that says nothing stands for any object."""
    schema = msgspec.json.decode(tool.parameters, type=dict[str, object])
    kinds = ("type", "properties", "anyOf", "oneOf", "allOf", "$ref", "enum", "const")
    return schema if any(kind in schema for kind in kinds) else {**schema, "type": "object"}


def _moved(node: object, root: str) -> object:
    """Return a schema whose references to itself lead to where it is put."""
    if isinstance(node, list):
        return [_moved(child, root) for child in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    moved = {key: _moved(child, root) for key, child in cast("Json", node).items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = root + reference[1:]
    return moved
