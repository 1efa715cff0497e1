# SPDX-License-Identifier: GPL-3.0-only
"""A browser's part in requests of pages: preflights, and whether a page may read the answer.

Source: the Fetch Standard, "CORS-preflight fetch" and "CORS check", for requests without credentials.
"""

from __future__ import annotations

from typing import Any

import httpx2

_SAFE_METHODS = ("GET", "HEAD", "POST")
_SAFE_HEADERS = ("accept", "accept-language", "content-language")
_SAFE_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")


class Blocked(Exception):
    """The page does not get the answer; the message says at which step."""


class Page:
    """A page of an origin."""

    def __init__(self, client: httpx2.AsyncClient, origin: str, site: str = "cross-site") -> None:
        self.client = client
        self.origin = {"Origin": origin, "Sec-Fetch-Site": site}
        self.preflights = 0

    async def fetch(self, method: str, path: str, headers: dict[str, str], **options: Any) -> httpx2.Response:
        """Send a request as `fetch` does. Raises: Blocked."""
        unsafe = sorted(name.lower() for name, value in headers.items() if not _is_safe(name.lower(), value))
        if unsafe or method not in _SAFE_METHODS:
            await self._ask(method, path, unsafe)
        answer = await self.client.request(method, path, headers={**headers, **self.origin}, **options)
        self._must_allow_origin(answer, "the answer is not for this page")
        return answer

    async def _ask(self, method: str, path: str, unsafe: list[str]) -> None:
        self.preflights += 1
        asked = {"Access-Control-Request-Method": method}
        if unsafe:
            asked["Access-Control-Request-Headers"] = ",".join(unsafe)
        answer = await self.client.options(path, headers={**asked, **self.origin})
        self._must_allow_origin(answer, "the preflight does not allow the origin")
        if not answer.is_success:
            raise Blocked(f"the preflight is answered with {answer.status_code}")
        methods = _words(answer, "access-control-allow-methods")
        names = {word.lower() for word in _words(answer, "access-control-allow-headers")}
        if method not in (*_SAFE_METHODS, *methods) and "*" not in methods:
            raise Blocked(f"the preflight does not allow {method}")
        for name in unsafe:
            if name not in names and ("*" not in names or name == "authorization"):
                raise Blocked(f"the preflight does not allow {name}")

    def _must_allow_origin(self, answer: httpx2.Response, otherwise: str) -> None:
        if answer.headers.get("access-control-allow-origin") not in ("*", self.origin["Origin"]):
            raise Blocked(otherwise)


def _is_safe(name: str, value: str) -> bool:
    return name in _SAFE_HEADERS or (name == "content-type" and value.partition(";")[0] in _SAFE_TYPES)


def _words(answer: httpx2.Response, name: str) -> set[str]:
    return {word.strip() for word in answer.headers.get(name, "").split(",")}
