# SPDX-License-Identifier: GPL-3.0-only
"""Decode the daemon's answers with the structs that the daemon writes them with.

A daemon of another version is read as far as it goes: keys that are not known are left out, a key that is
missing is zero or empty, and an enum may hold a word that it does not list. Only the first key of an answer
must be there: whatever else is JSON lacks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo, fields

from modeld.cli.client import Refused

Value = TypeVar("Value")

_ZEROS: Mapping[Any, object] = {str: "", int: 0, float: 0.0, bool: False, tuple: (), list: [], Mapping: {}}
"""What stands for a missing key of such a type; for others, None."""


def read(data: bytes, kind: type[Value]) -> Value:
    """Return the answer as a value of this struct, in which enums are plain text.

    Raises:
      Refused: it is not of that kind.
    """
    try:
        return cast("Value", msgspec.json.decode(data, type=_tolerant(cast("Any", kind), outermost=True)))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"the daemon's answer cannot be read; it may be of another version: {error}") from None


@cache
def _tolerant(kind: Any, *, outermost: bool = False) -> Any:
    """Return the type that reads `kind` from daemons of any version; of a struct, one derived from it."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return str
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        keys = [
            (field.name, _tolerant(field.type))
            if outermost and field.required and place == 0
            else (field.name, _tolerant(field.type), _default(field))
            for place, field in enumerate(fields(kind))
        ]
        return msgspec.defstruct(kind.__name__, keys, bases=(kind,), frozen=True, kw_only=True)
    parts = tuple(map(_tolerant, get_args(kind)))
    if not parts:
        return cast("Any", kind)
    origin: Any = Union if get_origin(kind) is UnionType else get_origin(kind)
    return origin[parts]


def _default(field: FieldInfo) -> object:
    """Return what a missing key is."""
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory)
    if not field.required:
        return field.default
    made = _tolerant(field.type)
    if isinstance(made, type) and issubclass(made, msgspec.Struct):
        return made()
    return _ZEROS.get(get_origin(made) or made)
