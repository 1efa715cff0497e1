# SPDX-License-Identifier: GPL-3.0-only
"""Cross-origin requests: decide which foreign pages a browser lets talk to this daemon. Off by default."""

from __future__ import annotations

import re

from quart import Response
from werkzeug.datastructures import Headers

from modeld.config.settings import Settings
from modeld.http.origin_checks import AllowedOrigins

_EXPOSED = (
    "X-Request-ID, Request-ID, Retry-After, X-Should-Retry, RateLimit, RateLimit-Policy, Location, "
    "WWW-Authenticate, X-Modeld-Ignored"
)
"""Answers' headers that a page may read, besides those that any page may."""
_MAX_AGE_S = "600"
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")


class Cors:
    """The rule for foreign origins, from the settings. No origin is allowed unless it is listed."""

    def __init__(self, settings: Settings) -> None:
        self._enabled = settings.cors_enabled
        self._origins = AllowedOrigins.of(settings)
        self._methods = ", ".join(settings.cors_allowed_methods)
        listed = [name.lower() for name in settings.cors_allowed_headers]
        self._headers = frozenset(listed)
        self._header_prefixes = tuple(name[:-1] for name in listed if name.endswith("*"))

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
            # By name, since a literal `*` does not cover Authorization (Fetch, "CORS-preflight fetch").
            if granted := self._granted(headers.get("Access-Control-Request-Headers", "")):
                response.headers["Access-Control-Allow-Headers"] = granted
            if headers.get("Access-Control-Request-Private-Network") == "true":
                response.headers["Access-Control-Allow-Private-Network"] = "true"
            response.headers["Access-Control-Max-Age"] = _MAX_AGE_S
        response.headers.add("Vary", "Access-Control-Request-Method")
        response.headers.add("Vary", "Access-Control-Request-Headers")
        return response

    def mark(self, request_headers: Headers, headers: Headers) -> None:
        """Add to an answer's headers what lets the page of an allowed origin read it."""
        if not self._enabled:
            return
        if self._origins.every:
            headers["Access-Control-Allow-Origin"] = "*"
        else:
            headers.add("Vary", "Origin")
            origin = request_headers.get("Origin")
            if not self._allows(origin):
                return
            headers["Access-Control-Allow-Origin"] = origin or ""
        headers["Access-Control-Expose-Headers"] = _EXPOSED

    def _allows(self, origin: str | None) -> bool:
        return origin is not None and self._origins.allows(origin)

    def _granted(self, asked: str) -> str:
        """Return those of the headers asked for that a page may send."""
        names = [name.strip().lower() for name in asked.split(",")]
        return ", ".join(
            name
            for name in names
            if _NAME.fullmatch(name) and (name in self._headers or name.startswith(self._header_prefixes))
        )
