# SPDX-License-Identifier: GPL-3.0-only
"""Take bodies of other APIs' clients: drop what has no effect here, and tell it. Pure.

What would change the meaning of an answer is not dropped: it stays in the body, and is refused there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Self

import msgspec
from msgspec import inspect

from modeld.dialects.common.validation_message import PLACE, STEP, UNKNOWN, keys_at, kinds_at
from modeld.errors import InvalidRequest

_MOST_NAMES = 32
"""Names of dropped keys that are told."""
_MEANINGFUL = frozenset(
    (
        *("background", "continue_final_message", "conversation", "dimensions", "echo", "function_call"),
        *("functions", "grammar", "guided_choice", "guided_grammar", "guided_json", "guided_regex", "images"),
        *("input", "json_schema", "messages", "modalities", "n", "previous_response_id", "prompt"),
        *("response_format", "stop_token_ids", "structured_outputs", "suffix", "tool_choice", "tools"),
    )
)
"""Keys that are never dropped, known or not: without them the answer would mean something else."""
_HINTS = frozenset(
    (
        *("annotations", "cache_prompt", "id_slot", "include", "metadata", "min_keep", "n_indent"),
        *("post_sampling_probs", "reasoning", "response_fields", "return_progress", "return_tokens"),
        *("samplers", "service_tier", "speed", "t_max_predict_ms", "timings_per_token", "truncation"),
        *("user", "verbosity"),
    )
)
"""Keys that change nothing of an answer's meaning: with a value that is not served they are dropped."""
_INDEX = re.compile(r"\[[^\]]*\]")
_PLACE_OF_KEY = re.compile(r"(?P<above>.*)\.(?P<key>[^.\[\]]+)(?:\[[^\]]*\])?")
_NONE = (b"null", b"false", b'""', b"[]", b"{}")
"""Values that clients use for "none"."""


class TolerantBody(bytes):
    """A body of another API's client: what is not known in it is dropped, and told.

    Plain bytes are read strictly: what is not known in them is refused.

    Attributes:
      ignored: names of what was dropped.
    """

    ignored: list[str]

    def __new__(cls, data: bytes, ignored: list[str]) -> Self:
        """`ignored` is added to while the body is read."""
        body = super().__new__(cls, data)
        body.ignored = ignored
        return body


def tolerate(body: bytes, name: str, refusal: str) -> None:
    """Take a key without its effect, and tell of it. Raises: InvalidRequest where bodies are strict."""
    if not isinstance(body, TolerantBody):
        raise InvalidRequest(refusal)
    if name not in body.ignored:
        body.ignored.append(name)


def without_unknown(
    text: str | bytes, reason: str, body: type[msgspec.Struct], ignored: list[str]
) -> bytes | None:
    """Return JSON without what may be left out at the place of an error; None if that cannot be.

    That are the unknown keys of an object, a key that can only be null, and one that is a hint.
    """
    match = PLACE.fullmatch(reason)
    if match is None:
        return None
    place = match["place"] or "$"
    unknown = UNKNOWN.fullmatch(match["what"])
    if unknown is None:
        at = _PLACE_OF_KEY.fullmatch(place)
        if at is None or not (at["key"] in _HINTS or match["what"].startswith("Expected `null`")):
            return None
        above = _INDEX.sub("[]", at["above"]).removeprefix("$").removeprefix(".")
        return _dropped(text, STEP.findall(at["above"]), lambda key: key == at["key"], above, ignored)
    known = frozenset(keys_at(place, body)) - {unknown["key"]}
    tags = {kind.tag_field for kind in kinds_at(place, body) if isinstance(kind, inspect.StructType)}
    name = _INDEX.sub("[]", place).removeprefix("$").removeprefix(".")
    steps = STEP.findall(place)
    return _dropped(text, steps, lambda key: key not in known and key not in tags, name, ignored)


def _dropped(
    value: str | bytes | msgspec.Raw,
    steps: list[str],
    drops: Callable[[str], bool],
    name: str,
    ignored: list[str],
) -> bytes:
    """Return JSON without some keys of the objects at a place; a step into a list means all items."""
    try:
        if steps and not steps[0].startswith("."):
            items = msgspec.json.decode(value, type=list[msgspec.Raw])
            return msgspec.json.encode(
                [msgspec.Raw(_dropped(item, steps[1:], drops, name, ignored)) for item in items]
            )
        members = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
        if steps:
            key = steps[0][1:]
            members[key] = msgspec.Raw(_dropped(members[key], steps[1:], drops, name, ignored))
            return msgspec.json.encode(members)
    except (msgspec.ValidationError, KeyError):
        return bytes(msgspec.Raw(value))  # Another item of the same list, of another kind.
    for key in [key for key in members if drops(key)]:
        value = bytes(members[key])
        if key in _MEANINGFUL and not name and value not in _NONE and (key, value) != ("n", b"1"):
            continue
        told = f"{name}.{key[:80]}" if name else key[:80]
        if told not in ignored and len(ignored) < _MOST_NAMES:
            ignored.append(told)
        del members[key]
    return msgspec.json.encode(members)
