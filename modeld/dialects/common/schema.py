# SPDX-License-Identifier: GPL-3.0-only
"""Check JSON schemas in bodies before an engine compiles them. Pure."""

from __future__ import annotations

from typing import cast

import msgspec

from modeld.dialects.common.body import malformed
from modeld.domain.request import Constraint, ConstraintKind
from modeld.errors import InvalidRequest

MAX_SCHEMA_DEPTH = 100
"""Levels of nesting in a JSON schema."""


def schema_text(raw: msgspec.Raw, key: str) -> str:
    """Return the JSON text of a schema.

    Raises: InvalidRequest, which names the key, for one that is no object, or that nests deeper than
    a recursive reader can follow.
    """
    text = bytes(raw).decode()
    try:
        level: list[object] = [msgspec.json.decode(text, type=dict[str, object])]
    except msgspec.ValidationError:
        raise InvalidRequest(f'`{key}` must be an object, such as {{"type": "object"}}') from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidRequest(malformed(text, str(error))) from None
    except RecursionError:
        level, depth = [], MAX_SCHEMA_DEPTH + 1
    else:
        depth = 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        depth += 1
        level = [child for value in level for child in _children(value)]
    if depth > MAX_SCHEMA_DEPTH:
        raise InvalidRequest(f"`{key}` is nested more than {MAX_SCHEMA_DEPTH} levels deep")
    return text


def schema_constraint(raw: msgspec.Raw, key: str, *, strict: bool | None = False) -> Constraint:
    """Return the constraint that the text is JSON of a schema in a body. Raises: InvalidRequest."""
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=schema_text(raw, key), strict=bool(strict))


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast("dict[str, object]", value).values())
    return cast("list[object]", value) if isinstance(value, list) else []
