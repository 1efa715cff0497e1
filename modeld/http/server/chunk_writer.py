# SPDX-License-Identifier: GPL-3.0-only
"""Write chunks of a response straight to the socket, once its head is sent.

On the way that ASGI prescribes, each part passes through the app server's state machine, h11's, a lock
and a deadline. A part of a chunked body changes no state in any of these: it is three lines of
framing (RFC 9112, 7.1). So between the first part and the last, which both go the usual way, parts are
framed here. Whatever the socket does not take at once waits for `drain`, which goes the usual way too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

_KEY = "modeld.chunk_writer"


class ChunkedConnection(Protocol):
    """The connection, as a chunk writer sees it."""

    @property
    def chunked(self) -> bool:
        """Whether the head of a chunked answer is on the wire, and its end is not."""
        ...

    def write_now(self, data: bytes) -> int:
        """Write what goes without waiting, and return how many bytes that were."""
        ...

    async def write(self, data: bytes) -> None:
        """Write all of it."""
        ...


class ChunkWriter:
    """Writes one answer."""

    def __init__(self, paper: ChunkedConnection) -> None:
        self._paper = paper
        self._rest = b""

    @property
    def ready(self) -> bool:
        """Whether parts may be written by it: from the first part of a chunked answer to the last."""
        return self._paper.chunked

    def write(self, data: bytes) -> bool:
        """Write a part, not empty, without waiting.

        Returns: whether all of it is on the wire, or the client is gone. If not, `drain` must follow
        before anything else is written.
        """
        framed = b"%x\r\n%b\r\n" % (len(data), data)
        sent = self._paper.write_now(framed)
        if sent == len(framed):
            return True
        self._rest = framed[sent:]
        return False

    async def drain(self) -> None:
        """Write what is left of the last part; a reader that takes nothing is cut in the end."""
        rest, self._rest = self._rest, b""
        if rest:
            await self._paper.write(rest)

    def attach(self, state: Mapping[str, object]) -> dict[str, object]:
        """Return an ASGI scope's state with this chunk writer in it."""
        return {**state, _KEY: self}


def chunk_writer_of(scope: Mapping[str, object]) -> ChunkWriter | None:
    """Return the chunk writer that the listener put into an ASGI scope; another server puts none."""
    state = cast("Mapping[str, object] | None", scope.get("state"))
    chunk_writer = None if state is None else state.get(_KEY)
    return chunk_writer if isinstance(chunk_writer, ChunkWriter) else None
