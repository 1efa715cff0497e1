# SPDX-License-Identifier: GPL-3.0-only
"""Markers and JSON schemas of function calls, and markers of thoughts, by model family. Pure.

Sources: the chat templates of the models named below, and llama.cpp's docs/function-calling.md.
"""

from __future__ import annotations

from typing import cast

import msgspec

from modeld.domain.request import Tool

HERMES_BEGIN, HERMES_END = "<tool_call>", "</tool_call>"
"""Hermes 2 Pro and 3, Qwen 2.5 and 3: around each call, a JSON object with `name` and `arguments`."""
MISTRAL_CALLS = "[TOOL_CALLS]"
"""Mistral: before a JSON list of calls; since version 11 before each name, which `[ARGS]` may follow."""
MISTRAL_ID, MISTRAL_ARGUMENTS = "[CALL_ID]", "[ARGS]"
LLAMA_TAG = "<|python_tag|>"
"""Llama 3.1: before a JSON object with `name` and `parameters`; most often it is left out."""

THOUGHTS = {"<think>": "</think>", "[THINK]": "[/THINK]"}
"""What stands around the thoughts of a model: DeepSeek R1, Qwen 3 and most others; Mistral's Magistral.
What a model writes between them is a draft: nothing in there calls a function."""

TOOL_MARKERS = frozenset(
    {
        *(HERMES_BEGIN, HERMES_END, MISTRAL_CALLS, MISTRAL_ID, MISTRAL_ARGUMENTS, LLAMA_TAG),
        *(*THOUGHTS, *THOUGHTS.values()),
    }
)
"""Texts that vocabularies may list as control tokens, which have no text of their own, and without which
nobody can tell what is a call."""


def ends_in_thought(prompt: str) -> str:
    """Return the marker of the thought that a prompt ends with, and the answer begins in; empty: none."""
    end = prompt.rstrip()
    return next((marker for marker in THOUGHTS if end.endswith(marker)), "")


# ----------------------------------------------------------------------
# The JSON schema of a call: an object of the name of a function and its arguments. Pure.

Json = dict[str, object]


def call_schema(tool: Tool, *, arguments: str = "arguments") -> Json:
    """Return the schema of a call of this function; `arguments`: the key of its arguments."""
    where = "#/$defs/arguments"
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, arguments: {"$ref": where}},
        "required": ["name", arguments],
        "additionalProperties": False,
        "$defs": {"arguments": _moved(argument_schema(tool), where)},
    }


def argument_schema(tool: Tool) -> Json:
    """Return the schema of the arguments alone; one that says nothing stands for any object."""
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
