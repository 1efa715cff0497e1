# SPDX-License-Identifier: GPL-3.0-only
"""Inputs of which vectors are wanted, as OpenAI's API has them and modeld's own. Pure."""

from __future__ import annotations

from typing import cast

from modeld.errors import InvalidRequest

MOST_INPUTS = 2048
"""Inputs of one request, as in OpenAI's API."""

Input = str | tuple[int, ...]
"""A text, or the ids of its tokens."""


def inputs_of(given: str | list[str | int | list[int]]) -> tuple[Input, ...]:
    """Return the inputs: a plain list of numbers is one of them.

    Raises: InvalidRequest for an empty one, for too many, and for a list that mixes ids with others.
    """
    entries = [given] if isinstance(given, str) else given
    ids = [entry for entry in entries if isinstance(entry, int)]
    if ids and len(ids) < len(entries):
        raise InvalidRequest(
            "`input` mixes token ids with other inputs; put the ids into a list of their own"
        )
    if ids:
        return (tuple(ids),)
    if len(entries) > MOST_INPUTS:
        raise InvalidRequest(f"`input` has {len(entries)} inputs; send {MOST_INPUTS} at most")
    for number, entry in enumerate(entries):
        if not entry:
            raise InvalidRequest(f"`input[{number}]` is empty")
    inputs = cast("list[str | list[int]]", entries)
    return tuple(entry if isinstance(entry, str) else tuple(entry) for entry in inputs)
