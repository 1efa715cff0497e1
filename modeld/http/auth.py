# SPDX-License-Identifier: GPL-3.0-only
"""Who may come in: the one place where a request's key is looked at.

Which scopes open a route is one table, by the route's path. A route that is not in it is for admins.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from modeld.errors import Forbidden, Unauthorized
from modeld.http.context import EdgeRequest
from modeld.quotas.client import EVERYBODY, Client, Scope
from modeld.runtime.keys.keyring import Keyring
from modeld.telemetry.log import get_logger

_log = get_logger("modeld.keys")

_ANY = frozenset(Scope)
_INFER = frozenset({Scope.INFER})
_ADMIN = frozenset({Scope.ADMIN})
_READ = frozenset({Scope.METRICS, Scope.ADMIN})
_OPEN: frozenset[Scope] = frozenset()

SCOPES: Mapping[str, frozenset[Scope]] = {
    # Open: what probes ask, and what is in the source for everybody to read.
    "/": _OPEN,
    "/healthz": _OPEN,
    "/readyz": _OPEN,
    "/health": _OPEN,
    "/openapi.json": _OPEN,
    "/docs": _OPEN,
    "/api/version": _OPEN,
    "/metrics": _READ,
    "/status": _READ,
    "/slots": _READ,
    "/api/ps": _READ | _INFER,
    "/models": _ANY,
    "/usage": _ANY,
    "/infer": _INFER,
    "/embed": _INFER,
    "/embedding": _INFER,
    "/embeddings": _INFER,
    "/completion": _INFER,
    "/completions": _INFER,
    "/tokenize": _INFER,
    "/detokenize": _INFER,
    "/apply-template": _INFER,
    "/props": _INFER,
    "/v1/": _INFER,
    "/api/": _INFER,
    "/models/": _ADMIN,
    "/operations": _ADMIN,
    "/operations/": _ADMIN,
    "/plan": _ADMIN,
    "/events": _ADMIN,
    "/keys": _ADMIN,
}
"""Paths as routes have them; one that ends with a slash is for all below it without a line of their own."""


def scopes_for(rule: str) -> frozenset[Scope]:
    """Return the scopes of which one opens a route; none at all: it is open to everybody."""
    if rule in SCOPES:
        return SCOPES[rule]
    above = [path for path in SCOPES if path != "/" and path.endswith("/") and rule.startswith(path)]
    return SCOPES[max(above, key=len)] if above else _ADMIN


def beyond_loopback(urls: Iterable[str]) -> tuple[str, ...]:
    """Return those of the URLs a listener has that other machines may reach."""
    return tuple(url for url in urls if not _is_local(url))


def _is_local(url: str) -> bool:
    if url.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback
    except ValueError:
        return False


def presented(request: EdgeRequest) -> str | None:
    """Return the key in a request: `Authorization: Bearer`, else `X-API-Key`."""
    scheme, _, text = request.sent(b"authorization").partition(" ")
    if scheme.lower() == "bearer" and text.strip():
        return text.strip()
    return request.sent(b"x-api-key").strip() or None


class Guard:
    """Lets requests in, or not. Without a keyring everybody may do everything."""

    def __init__(self, keyring: Keyring | None) -> None:
        self.keyring = keyring
        self._exposed: tuple[str, ...] = ()

    async def admit(self, request: EdgeRequest) -> Client:
        """Return who sends this request, whose route is known.

        Raises: Unauthorized, Forbidden, TooManyAttempts.
        """
        rule = request.url_rule
        wanted = _OPEN if rule is None else scopes_for(rule.rule)
        if self.keyring is None or not wanted:
            return EVERYBODY
        text = presented(request)
        if text is None:
            raise Unauthorized("a key is needed: send it as Authorization: Bearer KEY, or as X-API-Key")
        client = await self.keyring.holder(text)
        if client is None:
            _log.info("a key was refused", client=request.remote_addr or "-", path=request.path[:200])
            raise Unauthorized("this key is not known; it was mistyped, or revoked")
        if not client.may(wanted):
            needed = " or ".join(sorted(wanted))
            raise Forbidden(f'the key "{client.name}" may not do this; that takes the scope {needed}')
        return client

    def listens_on(self, urls: Sequence[str]) -> None:
        """Note where the listener can be reached, and warn loudly if that is by everybody."""
        self._exposed = beyond_loopback(urls)
        for warning in self.warnings:
            _log.warning(warning)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the operator should mend."""
        if self.keyring is None and self._exposed:
            places = ", ".join(self._exposed)
            return (
                (
                    f"NO KEYS: whoever reaches {places} may use, load and unload every model; set keys_file "
                    "(modeld keys add makes a key), or listen on 127.0.0.1"
                ),
            )
        if self.keyring is not None and not self.keyring.clients:
            return ("the file of keys has no key, so every request is refused; add one with modeld keys add",)
        return ()
