# SPDX-License-Identifier: GPL-3.0-only
"""`RateLimit` and `RateLimit-Policy`: what a key may have, and what is left of it. Pure.

The form is that of draft-ietf-httpapi-ratelimit-headers-10: lists of structured fields (RFC 9651).
`tokens` is no registered quota unit; there is none for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from modeld.core.meter import Standing


def rate_headers(standings: Iterable[Standing]) -> Mapping[str, str]:
    """Return both headers, or none where there is no limit."""
    limits = tuple(standings)
    if not limits:
        return {}
    return {
        "RateLimit-Policy": ", ".join(map(_policy, limits)),
        "RateLimit": ", ".join(map(_service, limits)),
    }


def _policy(it: Standing) -> str:
    window = "" if it.window_s is None else f";w={it.window_s}"
    unit = "" if it.unit == "requests" else f';qu="{it.unit}"'
    return f'"{it.policy}";q={it.quota}{window}{unit}'


def _service(it: Standing) -> str:
    reset = "" if it.reset_s is None else f";t={math.ceil(it.reset_s)}"
    return f'"{it.policy}";r={it.left}{reset}'
