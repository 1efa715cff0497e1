# SPDX-License-Identifier: GPL-3.0-only
"""What bounds a text: keys that dialects spell alike, with llama.cpp's names, types and ranges. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, UnsetType

StopText = Annotated[str, Meta(min_length=1, max_length=1000)]
Stops = Annotated[
    StopText | Annotated[list[StopText], Meta(max_length=64)] | None,
    Meta(description="The text ends before the first of these"),
]
Grammar = Annotated[str | None, Meta(description="GBNF grammar that the text must match")]
JsonSchema = Annotated[
    msgspec.Raw | UnsetType,
    Meta(
        description="JSON schema that the text must satisfy; not together with `grammar`",
        extra_json_schema={"type": ["object", "null"]},
    ),
]
IgnoreEos = Annotated[bool | None, Meta(description="Ban end-of-generation tokens; default false")]


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """Return stop sequences: one alone is written without a list."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
