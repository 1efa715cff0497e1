# SPDX-License-Identifier: GPL-3.0-only
"""Cross-origin requests: which foreign pages a browser lets talk to this daemon. Off unless configured."""

from __future__ import annotations

from quart import Response
from werkzeug.datastructures import Headers

from modeld.config.settings import Settings

_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_HEADERS = ("Content-Type", "X-Request-ID", "X-Log-Level")
_EXPOSED = "X-Request-ID, Retry-After, RateLimit, RateLimit-Policy"
_MAX_AGE_S = "600"


class Cors:
    """The rule for foreign origins, from the settings. No origin is allowed unless it is listed."""

    def __init__(self, settings: Settings) -> None:
        self._enabled = settings.cors_enabled
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.cors_allowed_origins)
        self._methods = ", ".join(settings.cors_allowed_methods or _METHODS)
        self._headers = ", ".join(settings.cors_allowed_headers or _HEADERS)

    def is_preflight(self, method: str, headers: Headers) -> bool:
        """Whether this is a browser's question before the request proper."""
        return (
            self._enabled
            and method == "OPTIONS"
            and "Origin" in headers
            and "Access-Control-Request-Method" in headers
        )

    def preflight(self, headers: Headers) -> Response:
        """Answer the question; an origin that is not allowed gets no permission in it."""
        response = Response(b"", 204)
        response.headers.pop("Content-Type", None)
        if self._allows(headers.get("Origin")):
            response.headers["Access-Control-Allow-Methods"] = self._methods
            response.headers["Access-Control-Allow-Headers"] = self._headers
            response.headers["Access-Control-Max-Age"] = _MAX_AGE_S
        response.headers.add("Vary", "Access-Control-Request-Method")
        response.headers.add("Vary", "Access-Control-Request-Headers")
        return response

    def mark(self, request_headers: Headers, headers: Headers) -> None:
        """Add to an answer's headers what lets the page of an allowed origin read it."""
        if not self._enabled:
            return
        if "*" in self._origins:
            headers["Access-Control-Allow-Origin"] = "*"
        else:
            headers.add("Vary", "Origin")
            origin = request_headers.get("Origin")
            if not self._allows(origin):
                return
            headers["Access-Control-Allow-Origin"] = origin or ""
        headers["Access-Control-Expose-Headers"] = _EXPOSED

    def _allows(self, origin: str | None) -> bool:
        return origin is not None and ("*" in self._origins or origin.lower() in self._origins)
