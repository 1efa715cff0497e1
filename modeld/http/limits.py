# SPDX-License-Identifier: GPL-3.0-only
"""Limits of time and size for connections and requests, in one value."""

from __future__ import annotations

import msgspec

from modeld.config.settings import Settings

KIB = 1024
CATALOG_MAX_AGE_S = 1.0
"""How old a list of models may be: new files are seen soon, and a flood of requests is not felt."""


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of connections and requests. Times in seconds, sizes in bytes."""

    write_timeout_s: float = 60.0
    """A reader that takes nothing for this long is cut."""
    shutdown_timeout_s: float = 5.0
    """Takes the place of `write_timeout_s` once the listener stops; then, too, what is left is cut."""
    header_timeout_s: float = 10.0
    """From the first byte of a request to the end of its headers."""
    keep_alive_s: float = 75.0
    """How long a connection may be idle: longer than the 60 s that proxies keep theirs."""
    body_timeout_s: float = 60.0
    """From the end of the headers to the end of the body."""
    linger_s: float = 5.0
    """After the last answer: how long to take in what the client still sends, so that it can read it."""
    stream_keep_alive_s: float = 15.0
    """A stream that is silent for this long gets a blank line."""
    max_header_bytes: int = 32 * KIB
    max_body_bytes: int = 1024 * KIB
    max_connections: int = 4096

    @property
    def max_pipelined_bytes(self) -> int:
        """What a client may send ahead of its turn: one more request."""
        return self.max_header_bytes + self.max_body_bytes


def http_limits(settings: Settings) -> HttpLimits:
    """Return the limits that follow from the settings."""
    return HttpLimits(
        write_timeout_s=settings.write_timeout,
        shutdown_timeout_s=settings.shutdown_timeout,
        header_timeout_s=settings.header_timeout,
        keep_alive_s=settings.idle_timeout,
        body_timeout_s=settings.body_timeout,
        max_header_bytes=settings.max_header_bytes,
        max_body_bytes=settings.max_body_bytes,
        max_connections=settings.max_connections,
    )
