# SPDX-License-Identifier: GPL-3.0-only
"""One request and its answer, around Quart: ids, headers, counting, and cleaning up in every case.

Quart does not clean up a body that it never began to send (the client left in between), so what a
request holds is kept in an `ExitStack` that closes here, when the exchange ends.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope
from quart import Quart, Response
from quart.utils import encode_headers
from quart.wrappers.response import DataBody
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest
from werkzeug.wrappers import Response as WerkzeugResponse

from modeld.core.client import EVERYBODY
from modeld.http.body import Streamed
from modeld.http.edge import EdgeRequest
from modeld.http.envelopes import envelope_of
from modeld.http.errors import error_of, error_response
from modeld.http.ident import request_id
from modeld.http.inbound import inbound_of
from modeld.http.pen import pen_of
from modeld.http.rate_headers import rate_headers
from modeld.http.reply import compress

if TYPE_CHECKING:
    from modeld.http.app import EdgeApp

CLIENT_LEFT = 499
"""Counted when the client was gone before its answer was complete."""


class Exchange(TrioASGIHTTPConnection):
    """One request on its way through the app."""

    def __init__(self, app: Quart, scope: HTTPScope) -> None:
        super().__init__(app, scope)
        own = cast("EdgeApp", app)
        self._edge = own.edge
        self._cors = own.cors
        self._request: EdgeRequest | None = None

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request. Whatever it holds is let go when this returns."""
        del receive  # What it would give comes by `Inbound`.
        began = trio.current_time()
        metrics = self._edge.metrics.http
        metrics.began()
        sender = _Sender(send)
        try:
            with ExitStack() as cleanup:
                self._cleanup = cleanup
                try:
                    await self._serve(sender)
                except Exception as error:  # noqa: BLE001  # told to the client, and logged with its traceback
                    await self._report(sender, error)
        finally:
            rule = None if self._request is None else self._request.url_rule
            metrics.ended(
                path=None if rule is None else rule.rule,
                method=self.scope["method"],
                status=sender.status if sender.complete else CLIENT_LEFT,
                duration_s=trio.current_time() - began,
            )

    def _create_request_from_scope(self, send: ASGISendCallable) -> TrioRequest:
        request = cast("EdgeRequest", super()._create_request_from_scope(send))
        request.id = request_id(request.sent(b"x-request-id"))
        request.cleanup = self._cleanup
        request.inbound = inbound_of(self.scope)
        request.client = EVERYBODY
        self._request = request
        return request

    async def _serve(self, send: ASGISendCallable) -> None:
        """Answer, or end in between when the client left (`Inbound` says when)."""
        request = cast("EdgeRequest", self._create_request_from_scope(send))
        with trio.CancelScope() as scope:
            request.inbound.attach(request.body, scope)
            try:
                response = await self.app.handle_request(request)
                await self._send_response(send, response)
            finally:
                request.inbound.detach()

    async def _send_response(self, send: ASGISendCallable, response: Response | WerkzeugResponse) -> None:
        request = cast("EdgeRequest", self._request)
        headers = response.headers
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Request-ID"] = request.id
        self._cors.mark(request.headers, headers)
        if request.client.id:
            headers.update(rate_headers(self._edge.accounts.standings(request.client)))
        if not isinstance(response, Response):
            await super()._send_response(send, response)
            return
        body, data = response.response, b""
        if isinstance(body, DataBody):
            data = compress(body.data, headers, request.sent(b"accept-encoding"))
        await send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": encode_headers(headers),
            }
        )
        if isinstance(body, Streamed):
            body.write_with(pen_of(self.scope))
            async with body:
                async for part in body:
                    await send({"type": "http.response.body", "body": part, "more_body": not body.ended})
        else:
            await send({"type": "http.response.body", "body": data, "more_body": False})

    async def _report(self, sender: _Sender, exception: Exception) -> None:
        """Say that something broke where Quart could not: with a 500, if nothing was said yet."""
        request = self._request
        error = error_of(
            exception,
            path=self.scope["path"],
            method=self.scope["method"],
            request_id=request.id if request is not None else "-",
            limits=self._edge.limits,
        )
        if request is not None and not sender.status:
            answer = error_response(error, envelope_of(request.path), request_id=request.id)
            await self._send_response(sender, answer)


class _Sender:
    """Passes the app's answer on, and remembers how far it came."""

    def __init__(self, send: ASGISendCallable) -> None:
        self._send = send
        self.status = 0
        self.complete = False

    async def __call__(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
        if message["type"] == "http.response.body" and not message["more_body"]:
            self.complete = True
