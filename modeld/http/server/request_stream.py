# SPDX-License-Identifier: GPL-3.0-only
"""Pass a request's body and disconnect to its handler, on the reading task.

ASGI has the app ask for messages: that takes a channel, and a task that waits for the client to leave. A
short request spends a tenth of its time on these (docs/performance.md). The listener knows of each
message when it happens, so it is taken here at once: the body grows, or the exchange is cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import trio
from hypercorn.typing import ASGIReceiveEvent
from quart_trio.wrappers.request import TrioBody
from werkzeug.exceptions import RequestEntityTooLarge

_KEY = "modeld.request_stream"


class RequestBody(TrioBody):
    """The body of a request as it arrives."""

    def refuse(self) -> None:
        """Have who reads it raise Quart's 413 at once, as for one that was declared too large."""
        self._must_raise = RequestEntityTooLarge()
        self.set_complete()


class RequestStream:
    """The request_stream side of one exchange.

    A client that has said all it has to say may close its half at once, and still reads. So a request that
    is whole is not ended before its work began: whatever is refused until then is told.
    """

    def __init__(self) -> None:
        self._early: list[ASGIReceiveEvent] = []
        """What came before the exchange began."""
        self._body: RequestBody | None = None
        self._scope: trio.CancelScope | None = None
        self._refused = False
        self._whole = False
        self._working = False
        self._left = False

    def bind(self, body: RequestBody, scope: trio.CancelScope) -> None:
        """Begin: give what comes to this body, and cancel this scope when the client left."""
        self._body = body
        self._scope = scope
        for message in self._early:
            self._take(body, message)
        self._early.clear()
        if self._refused:
            body.refuse()

    def unbind(self) -> None:
        """End: nobody wants what still comes."""
        self._body = self._scope = None
        self._left = True

    def cancel_on_disconnect(self) -> None:
        """Say that there is work from now on which a client who leaves no longer wants."""
        self._working = True
        self._end_if_left()

    def refuse_body(self) -> None:
        """Say that the body will be larger than any may be: whoever reads it learns that at once."""
        self._refused = True
        if self._body is not None:
            self._body.refuse()

    async def feed(self, message: ASGIReceiveEvent) -> None:
        """Take a message of the listener. Never waits."""
        if self._body is not None:
            self._take(self._body, message)
        elif not self._left:
            self._early.append(message)

    def into(self, state: Mapping[str, object]) -> dict[str, object]:
        """Return an ASGI scope's state with this in it."""
        return {**state, _KEY: self}

    def _take(self, body: RequestBody, message: ASGIReceiveEvent) -> None:
        if message["type"] != "http.request":
            self._left = True
            self._end_if_left()
            return
        body.append(message["body"])
        if not message["more_body"]:
            body.set_complete()
            self._whole = True

    def _end_if_left(self) -> None:
        if self._left and self._scope is not None and (self._working or not self._whole):
            self._scope.cancel()


def request_stream_of(scope: Mapping[str, object]) -> RequestStream:
    """Return what the listener put into an ASGI scope. Raises: KeyError under another server."""
    state = cast("Mapping[str, object]", scope["state"])
    return cast("RequestStream", state[_KEY])
