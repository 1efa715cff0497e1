# SPDX-License-Identifier: GPL-3.0-only
"""Other spellings of a path without a route: what clients make of a base URL and their own path. Pure."""

from __future__ import annotations

_PREFIXES = frozenset({"v1", "api"})


def other_spellings(path: str) -> tuple[str, str]:
    """Return the paths that may be meant by this one, the likelier first.

    The first is without slashes at the end and doubled ones, and with only the last of the prefixes that it
    begins with: a base URL that ends in `/v1` gets another from a client that adds `/v1/models`. The second
    has the prefix `/v1` in front, for a client of OpenAI or Anthropic whose base URL lacks it.
    """
    segments = [segment for segment in path.split("/") if segment]
    while len(segments) > 1 and _PREFIXES.issuperset(segments[:2]):
        del segments[0]
    plain = "/" + "/".join(segments)
    return plain, f"/v1{plain}"
