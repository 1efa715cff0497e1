# SPDX-License-Identifier: GPL-3.0-only
"""How a room of routes tells the app what it serves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from quart import Response
from werkzeug.routing import BaseConverter

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
