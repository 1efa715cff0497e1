# SPDX-License-Identifier: GPL-3.0-only
"""How a room of routes tells the app what it serves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from quart import Response

Route = tuple[str, Callable[..., Awaitable[Response]], list[str]]
"""Path, view (it takes what is variable in the path), methods. HEAD comes with GET, OPTIONS with all."""
