# SPDX-License-Identifier: GPL-3.0-only
"""How a room of routes tells the app what it serves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from quart import Response
from werkzeug.routing import BaseConverter

from modeld.config.values import did_you_mean
from modeld.errors import InvalidRequest
from modeld.http.context import EdgeRequest

View = Callable[..., Awaitable[Response]]
"""Takes what is variable in the path."""
Route = tuple[str, View, list[str]]
"""Path, view, methods. HEAD comes with GET, OPTIONS with all."""


class AnyPath(BaseConverter):
    """`<path:...>` in a rule: whatever a model may be called, slashes and line ends included.

    Werkzeug's own takes no line ends, nor a slash at the beginning. A slash at the end is no part of a name.
    """

    part_isolating = False
    regex = "(?s:.*?[^/])"
    weight = 200


# ----------------------------------------------------------------------
# Query parameters: one that a route does not know is refused, not passed over in silence.

_EVERYWHERE = ("log",)
"""What every route takes, see `http.request_log`."""


def refuse_unknown(request: EdgeRequest, known: Sequence[str]) -> None:
    """Raise InvalidRequest, which names it, if there is a query parameter but these."""
    if not request.query_string:
        return
    for key in request.args:
        if key not in known and key not in _EVERYWHERE:
            raise InvalidRequest(f'unknown parameter "{key[:40]}"{did_you_mean(key, known)}')
