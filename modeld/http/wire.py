# SPDX-License-Identifier: GPL-3.0-only
"""What the HTTP/1.1 protocol needs of the connection that it speaks over."""

from __future__ import annotations

from typing import Protocol

from hypercorn.events import Event


class Wire(Protocol):
    """What the protocol needs of its connection. Nothing here waits, but `send`."""

    @property
    def encrypted(self) -> bool:
        """Whether bytes go through TLS, so that none can be written past it."""
        ...

    async def send(self, event: Event) -> None:
        """Write `RawData`; `Updated` and `Closed` only change what is waited for."""
        ...

    def write_now(self, data: bytes) -> int:
        """Write what goes at once, and return how many bytes that were; nobody else may be writing."""
        ...

    def cycle_ended(self) -> None:
        """Another request may follow."""
        ...

    def finish(self) -> None:
        """No request follows: close once the client has read the answer."""
        ...
