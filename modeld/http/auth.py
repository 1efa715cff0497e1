# SPDX-License-Identifier: GPL-3.0-only
"""Check the key of a request against the scopes that its endpoint needs."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from urllib.parse import urlsplit

from modeld.errors import Forbidden, Unauthorized
from modeld.quotas.client import EVERYBODY, Client, Scope
from modeld.runtime.keys.keyring import Keyring
from modeld.telemetry.log import get_logger

_log = get_logger("modeld.keys")


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


Header = Callable[[bytes], str]
"""Returns the first value of a header, by its name in small letters; empty if there is none."""


def presented_key(header: Header) -> str | None:
    """Return the key in a request: `Authorization: Bearer`, else `X-API-Key`."""
    scheme, _, text = header(b"authorization").partition(" ")
    if scheme.lower() == "bearer" and text.strip():
        return text.strip()
    return header(b"x-api-key").strip() or None


class Authorizer:
    """Admits requests. Without a keyring everything is allowed."""

    def __init__(self, keyring: Keyring | None) -> None:
        self.keyring = keyring
        self._exposed: tuple[str, ...] = ()

    async def admit(self, header: Header, scopes: AbstractSet[Scope], *, address: str, path: str) -> Client:
        """Return the client that sends a request.

        Args:
          header: looks up the request's headers.
          scopes: a key needs one of them; none: no key is needed.
          address: of the client, for the log.
          path: what it asks for, for the log.

        Raises: Unauthorized, Forbidden, TooManyAttempts.
        """
        if self.keyring is None or not scopes:
            return EVERYBODY
        text = presented_key(header)
        if text is None:
            raise Unauthorized("a key is needed: send it as Authorization: Bearer KEY, or as X-API-Key")
        client = await self.keyring.holder(text)
        if client is None:
            _log.info("a key was refused", client=address, path=path[:200])
            raise Unauthorized("this key is not known; it was mistyped, or revoked")
        if not client.may(scopes):
            needed = " or ".join(sorted(scopes))
            raise Forbidden(f'the key "{client.name}" may not do this; that takes the scope {needed}')
        return client

    def listens_on(self, urls: Iterable[str]) -> None:
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
