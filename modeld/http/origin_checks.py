# SPDX-License-Identifier: GPL-3.0-only
"""Refuse requests that a web page makes a browser send without permission. Pure.

A server that listens on 127.0.0.1 only is still reached by every page that its user opens:

- Cross-site requests: a page may send a POST without a body, or with the body of a form, to any address. The
  browser asks no preflight for these, so withholding CORS headers does not prevent what they do.
- DNS rebinding: the page's own name is made to resolve to 127.0.0.1. To the browser everything is one origin
  then, so the Origin check alone passes; but the Host header still has the name of the page.

Sources: RFC 9110, section 7.2 (Host); RFC 6454, section 7 (Origin); W3C Fetch Metadata Request Headers.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from modeld.config.address import parse_address
from modeld.config.settings import Settings
from modeld.errors import HostNotAllowed, OriginNotAllowed

Headers = Iterable[tuple[bytes, bytes]]
"""Names in small letters, and values."""

READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing; a page of another origin cannot read their answers unless CORS lets it."""

_LOCAL_NAMES = ("localhost", "host.docker.internal", "host.containers.internal")
"""Names that no page on the Internet can have (RFC 6761; `.internal` is reserved), as containers use them."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?)\.?)(?::([0-9]{0,5}))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)")
_SHOWN = 80
"""Characters of a client's header that an error repeats."""


class Authority(NamedTuple):
    """A host, in small letters and without a trailing dot, and a port where one is written."""

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Authority | None:
        """Return what a Host header, or an Origin after its scheme, names; None where it is malformed."""
        found = _AUTHORITY.fullmatch(text.strip(" \t").lower())
        if found is None:
            return None
        host = found[2]
        if found[1] is not None:
            try:
                host = str(ipaddress.IPv6Address(found[1]))
            except ValueError:
                return None
        return cls(host, int(found[3]) if found[3] else None)


class Origin(NamedTuple):
    """The origin of a page, with its default port written out."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Origin | None:
        """Return the origin that a header or a setting names; None for `null` and what is malformed."""
        found = _ORIGIN.fullmatch(text.strip(" \t").lower())
        if found is None:
            return None
        scheme = found[1]
        # Electron's pages come from `file://`, which has no host.
        authority = Authority.parse(found[2]) or (Authority("", None) if not found[2] else None)
        if authority is None:
            return None
        return cls(scheme, authority.host, authority.port or _DEFAULT_PORTS.get(scheme))


class AllowedHosts(msgspec.Struct, frozen=True):
    """The names by which the daemon is served while no keys are in force."""

    names: frozenset[str]
    suffixes: tuple[str, ...]
    every: bool

    @classmethod
    def of(cls, settings: Settings, own_names: Iterable[str] = ()) -> AllowedHosts:
        """Return the names of the settings, `addr` included, and those of this machine."""
        listed = [_plain(name) for name in settings.allowed_hosts]
        bound = parse_address(settings.addr).host
        names = {_plain(name) for name in (bound, *own_names) if name and not _is_address(name)}
        return cls(
            names=frozenset({*_LOCAL_NAMES, *names, *(name for name in listed if not name.startswith("*"))}),
            suffixes=(".localhost", *(name[1:] for name in listed if name.startswith("*."))),
            every="*" in listed,
        )

    @property
    def shown(self) -> tuple[str, ...]:
        """The names, for people."""
        return ("*",) if self.every else (*sorted(self.names), *(f"*{suffix}" for suffix in self.suffixes))

    def allows(self, host: str) -> bool:
        """Whether a request may name this host. An address always: rebinding takes a name."""
        return self.every or host in self.names or host.endswith(self.suffixes) or _is_address(host)


class AllowedOrigins(msgspec.Struct, frozen=True):
    """The origins whose pages CORS lets in."""

    origins: frozenset[Origin] = frozenset()
    schemes: frozenset[str] = frozenset()
    """Written `app://*`: programs whose pages have a new host each time."""
    null: bool = False
    every: bool = False

    @classmethod
    def of(cls, settings: Settings) -> AllowedOrigins:
        """Return the origins of the settings; none without `cors_enabled`."""
        if not settings.cors_enabled:
            return cls()
        texts = [text.lower() for text in settings.cors_allowed_origins]
        return cls(
            origins=frozenset(origin for text in texts if (origin := Origin.parse(text)) is not None),
            schemes=frozenset(text.removesuffix("://*") for text in texts if text.endswith("://*")),
            null="null" in texts,
            every="*" in texts,
        )

    def allows(self, text: str) -> bool:
        """Whether pages of the origin in a header may use the API."""
        if text == "null":
            return self.null or self.every
        origin = Origin.parse(text)
        return origin is not None and (self.every or origin in self.origins or origin.scheme in self.schemes)


class OriginChecks(msgspec.Struct, frozen=True):
    """Both checks, which come before any route.

    Attributes:
      hosts: None while keys are in force, since a page that was rebound to the daemon has none.
      origins: whose pages may do more than read.
    """

    hosts: AllowedHosts | None
    origins: AllowedOrigins

    def check(self, headers: Headers, *, method: str, encrypted: bool, any_host: bool) -> None:
        """Return if the request may be served.

        Args:
          headers: of the request.
          method: of the request.
          encrypted: the daemon itself speaks TLS on this connection.
          any_host: skip the check of the host: for sockets that no browser can reach, and what load balancers
            probe by the name of a cluster, which tells a page nothing.

        Raises:
          HostNotAllowed: it may come from a page that was rebound to the daemon.
          OriginNotAllowed: it comes from a page that may not do this.
        """
        sent: dict[bytes, list[str]] = {b"host": [], b"origin": [], b"sec-fetch-site": []}
        for name, value in headers:
            if name in sent:
                sent[name].append(value.decode("latin-1").strip(" \t"))
        hosts = [host for host in sent[b"host"] if host]  # HTTP/1.0 needs none; browsers always send one.
        if self.hosts is not None and not any_host and hosts and not self._serves(self.hosts, hosts):
            raise HostNotAllowed(
                f'the host "{", ".join(hosts)[:_SHOWN]}" is not served without keys; if that is a name of '
                "this server, add it to allowed_hosts (--allowed-hosts, MODELD_ALLOWED_HOSTS)"
            )
        if method in READING_METHODS:
            return
        origins, sites = sent[b"origin"], sent[b"sec-fetch-site"]
        if origins:
            if len(origins) == 1 and (
                _is_own(origins[0], hosts, encrypted=encrypted) or self.origins.allows(origins[0])
            ):
                return
            page = f'pages of "{", ".join(origins)[:_SHOWN]}"'
        elif all(site.lower() in {"same-origin", "none"} for site in sites):
            return
        else:
            page = "pages of other sites"
        raise OriginNotAllowed(
            f"{page} may only read here; to let a page use the API, set cors_enabled and add its origin to "
            "cors_allowed_origins"
        )

    @staticmethod
    def _serves(allowed: AllowedHosts, hosts: list[str]) -> bool:
        named = [Authority.parse(host) for host in hosts]
        return len(named) == 1 and named[0] is not None and allowed.allows(named[0].host)


def _is_own(text: str, hosts: list[str], *, encrypted: bool) -> bool:
    """Whether a page comes from this daemon, as its client addresses it.

    Without TLS the scheme may still be https: a proxy in front may speak it. With TLS it cannot be http.
    """
    origin = Origin.parse(text)
    host = Authority.parse(hosts[0]) if len(hosts) == 1 else None
    if origin is None or host is None or origin.scheme not in _DEFAULT_PORTS:
        return False
    if encrypted and origin.scheme != "https":
        return False
    return (origin.host, origin.port) == (host.host, host.port or _DEFAULT_PORTS[origin.scheme])


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
