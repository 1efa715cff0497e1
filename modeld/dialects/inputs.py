# SPDX-License-Identifier: GPL-3.0-only
"""Texts or ids of tokens, one or several: as OpenAI's API has prompts and inputs, and modeld's own. Pure."""

from __future__ import annotations

from typing import cast

from modeld.errors import InvalidRequest

MOST_INPUTS = 2048
"""Inputs of one request, as in OpenAI's API."""

Input = str | tuple[int, ...]
"""A text, or the ids of its tokens."""


def inputs_of(
    given: str | list[str | int | list[int]], *, field: str = "input", most: int | None = MOST_INPUTS
) -> tuple[Input, ...]:
    """Return the inputs that `field` of a body gives: a plain list of numbers is one of them.

    Raises: InvalidRequest for an empty one, for more than `most`, and for a list that mixes ids with others.
    """
    entries = [given] if isinstance(given, str) else given
    ids = [entry for entry in entries if isinstance(entry, int)]
    if ids and len(ids) < len(entries):
        raise InvalidRequest(
            f"`{field}` mixes token ids with other {field}s; put the ids into a list of their own"
        )
    if ids:
        return (tuple(ids),)
    if most is not None and len(entries) > most:
        raise InvalidRequest(f"`{field}` has {len(entries)} {field}s; send {most} at most")
    for number, entry in enumerate(entries):
        if not entry:
            raise InvalidRequest(
                f"`{field}[{number}]` is empty" if len(entries) > 1 else f"`{field}` is empty"
            )
    inputs = cast("list[str | list[int]]", entries)
    return tuple(entry if isinstance(entry, str) else tuple(entry) for entry in inputs)
