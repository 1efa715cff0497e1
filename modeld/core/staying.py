# SPDX-License-Identifier: GPL-3.0-only
"""How long a model stays loaded after requests and operations. Pure.

Each that ends says until when its own has the model stay: by its `keep_alive`, else by the model's
`ttl`. What one and the same says later takes the place of what he said before; what others said holds,
so that nobody takes a model away from others. Who may unload a model may also do that: with a `keep_alive` of
his own he has the last word. Where no keys are in force, everybody is one and the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec.structs import replace

from modeld.core.instance_view import InstanceView
from modeld.core.instant import Instant

OPERATOR = ""
"""Whose word an operation is; also that of everybody where no keys are in force."""


def until(keep_s: float | None, now: Instant) -> Instant:
    """Return the end of a stay of so many seconds; None and what is negative have none: infinity."""
    return math.inf if keep_s is None or keep_s < 0 else now + keep_s


def having_said(
    view: InstanceView, owner: str, end: Instant, now: Instant, *, alone: bool = False
) -> InstanceView:
    """Return a model that stays as long as anybody has it stay, now that `owner` has said until `end`.

    `alone`: his word is the only one that counts.
    """
    others = {} if alone else {who: when for who, when in view.stays.items() if when > now and who != owner}
    return _staying(view, {**others, owner: end})


def prolonged(view: InstanceView, end: Instant) -> InstanceView:
    """Return a model that stays at least until `end`, and as long as it would anyway."""
    return _staying(view, {**view.stays, OPERATOR: max(view.stays.get(OPERATOR, end), end)})


def _staying(view: InstanceView, stays: Mapping[str, Instant]) -> InstanceView:
    end = max(stays.values())
    return replace(view, stays=stays, keep_until=None if end == math.inf else end)
