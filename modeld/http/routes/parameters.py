# SPDX-License-Identifier: GPL-3.0-only
"""Query parameters: one that a route does not know is refused, not passed over in silence."""

from __future__ import annotations

from collections.abc import Sequence

from modeld.config.nearest import did_you_mean
from modeld.errors import InvalidRequest
from modeld.http.edge import EdgeRequest

_EVERYWHERE = ("log",)
"""What every route takes, see `http.infer_log`."""


def refuse_unknown(request: EdgeRequest, known: Sequence[str]) -> None:
    """Raise InvalidRequest, which names it, if there is a query parameter but these."""
    if not request.query_string:
        return
    for key in request.args:
        if key not in known and key not in _EVERYWHERE:
            raise InvalidRequest(f'unknown parameter "{key[:40]}"{did_you_mean(key, known)}')
