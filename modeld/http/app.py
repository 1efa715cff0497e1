# SPDX-License-Identifier: GPL-3.0-only
"""The Quart-Trio app: routing and error handling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, cast

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope
from quart import Quart, Request, Response
from quart.utils import encode_headers
from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.wrappers import Response as WerkzeugResponse

from modeld.config.settings import Settings
from modeld.dialects.common.streaming import json_bytes
from modeld.errors import InvalidRequest
from modeld.http.auth import Authorizer
from modeld.http.context import AppContext, Backend, HttpRequest
from modeld.http.cors import Cors
from modeld.http.endpoint import AnyPath, Endpoint
from modeld.http.endpoints import ENDPOINTS
from modeld.http.errors import BACKPRESSURE, ErrorFormat, error_of, error_response, format_of_unknown
from modeld.http.limits import HttpLimits, http_limits
from modeld.http.openapi.document import openapi_document
from modeld.http.openapi.page import docs_page
from modeld.http.origin_checks import AllowedHosts, AllowedOrigins, OriginChecks
from modeld.http.replies import IGNORED_HEADER, compress, notice_headers, rate_headers
from modeld.http.request_id import request_id
from modeld.http.server.chunk_writer import chunk_writer_of
from modeld.http.server.request_stream import request_stream_of
from modeld.http.streaming import ResponseStream
from modeld.quotas.client import EVERYBODY
from modeld.runtime.keys.accounts import KeyAccounts
from modeld.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from quart.routing import QuartRule


# ----------------------------------------------------------------------
# One request and its answer, around Quart: ids, headers, counting, and cleaning up in every case.
#
# Quart does not clean up a body that it never began to send (the client left in between), so what a
# request holds is kept in an `ExitStack` that closes here, when the exchange ends.

CLIENT_LEFT = 499
"""Counted when the client was gone before its answer was complete."""


class RequestHandler(TrioASGIHTTPConnection):
    """One request on its way through the app."""

    def __init__(self, app: Quart, scope: HTTPScope) -> None:
        super().__init__(app, scope)
        own = cast("ModeldApp", app)
        self._context = own.context
        self._cors = own.cors
        self._request: HttpRequest | None = None

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request. Whatever it holds is let go when this returns."""
        del receive  # What it would give comes by `RequestStream`.
        began = trio.current_time()
        metrics = self._context.metrics.http
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
        request = cast("HttpRequest", super()._create_request_from_scope(send))
        request.id = request_id(request.sent(b"x-request-id"))
        request.cleanup = self._cleanup
        request.request_stream = request_stream_of(self.scope)
        request.ignored = None
        request.client = EVERYBODY
        self._request = request
        return request

    async def _serve(self, send: ASGISendCallable) -> None:
        """Answer, or end in between when the client left (`RequestStream` says when)."""
        request = cast("HttpRequest", self._create_request_from_scope(send))
        with trio.CancelScope() as scope:
            request.request_stream.bind(request.body, scope)
            try:
                response = await self.app.handle_request(request)
                await self._send_response(send, response)
            finally:
                request.request_stream.unbind()

    async def _send_response(self, send: ASGISendCallable, response: Response | WerkzeugResponse) -> None:
        request = cast("HttpRequest", self._request)
        headers = response.headers
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Request-ID"] = request.id
        if request.ignored:
            told = [headers[IGNORED_HEADER]] if IGNORED_HEADER in headers else []
            headers.update(notice_headers([*request.ignored, *told]))
        self._cors.mark(request.headers, headers)
        if request.client.id:
            headers.update(rate_headers(self._context.accounts.limit_statuses(request.client)))
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
        if isinstance(body, ResponseStream):
            body.write_with(chunk_writer_of(self.scope))
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
            limits=self._context.limits,
        )
        if request is not None and not sender.status:
            errors = cast("ModeldApp", self.app).errors_for(request)
            answer = error_response(error, errors, request_id=request.id)
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


# ----------------------------------------------------------------------
# Other spellings of a path without a route: what clients make of a base URL and their own path. Pure.

_PREFIXES = frozenset({"v1", "api"})


def other_spellings(path: str) -> tuple[str, str]:
    """Return the paths that may be meant by this one, the likelier first.

    The first is without slashes at the end and doubled ones, and with only the last of the prefixes that it
    begins with: a base URL that ends in `/v1` gets another from a client that adds `/v1/models`. The second
    has the prefix `/v1` in front, for a client of OpenAI or Anthropic whose base URL lacks it.
    """
    segments = [segment for segment in path.split("/") if segment]
    while len(segments) > 1 and _PREFIXES.issuperset(segments[:2]):
        del segments[0]
    plain = "/" + "/".join(segments)
    return plain, f"/v1{plain}"


# ----------------------------------------------------------------------


class ModeldApp(QuartTrio):
    """The app, and what its requests need."""

    asgi_http_class = RequestHandler
    request_class = HttpRequest

    def __init__(self, context: AppContext, own_names: Iterable[str] = ()) -> None:
        super().__init__("modeld", static_folder=None)
        self.context = context
        self.authorizer = context.authorizer
        self.cors = Cors(context.settings)
        self._origin_checks = OriginChecks(
            hosts=AllowedHosts.of(context.settings, own_names)
            if context.authorizer.keyring is None
            else None,
            origins=AllowedOrigins.of(context.settings),
        )
        self.config["RESPONSE_TIMEOUT"] = None  # Quart would cut every stream at 60 s, silently.
        self.config["BODY_TIMEOUT"] = context.limits.body_timeout_s
        self.config["MAX_CONTENT_LENGTH"] = context.limits.max_body_bytes
        self.config["PROPAGATE_EXCEPTIONS"] = False
        self.url_map.merge_slashes = False
        self.url_map.converters["path"] = AnyPath
        self._endpoints: dict[str, Endpoint] = {}
        """By what routing calls them."""
        self._formats: dict[str, ErrorFormat] = {}
        """By fixed path, for errors before an endpoint is found."""
        for endpoint in ENDPOINTS:
            for path in (endpoint.path, *endpoint.also):
                name = f"{endpoint.method} {path}"
                self.add_url_rule(path, name, endpoint.view, methods=[endpoint.method])
                self._endpoints[name] = endpoint
                self._formats[path] = endpoint.errors
        self._routes = self.url_map.bind("modeld")
        self._fixed_paths = frozenset(rule.rule for rule in self.url_map.iter_rules() if "<" not in rule.rule)

    async def handle_request(self, request: Request) -> Response:
        """Answer a request; what is raised on the way becomes an error's answer.

        In place of Quart's own way, which leads through two contexts, a session, six signals and callbacks.
        None of these is used here, and a short request spent much of its time on them (docs/performance.md).
        """
        own = cast("HttpRequest", request)
        try:
            return await self._answer(own)
        except Exception as error:  # noqa: BLE001  # `error_of` tells what is known, and logs the rest
            return self._on_error(own, error)

    async def _answer(self, request: HttpRequest) -> Response:
        missing: HTTPException | None = None
        arguments: Mapping[str, str] = {}
        endpoint: Endpoint | None = None
        try:
            endpoint, arguments = self._find(request)
        except HTTPException as error:
            missing = error  # Raised below, after the checks of Origin and Host.
        answer = await self._before(request, endpoint)
        if answer is not None:
            return answer
        if endpoint is None:
            raise missing or NotFound
        if request.method == "OPTIONS":
            return Response("", headers={"Allow": ", ".join(self._routes.allowed_methods(request.path))})
        if endpoint.tolerant and not self.context.settings.strict_bodies:
            request.ignored = []
        response = endpoint.view(self.context, request, **arguments)
        return response if isinstance(response, Response) else await response

    def _find(self, request: HttpRequest) -> tuple[Endpoint, Mapping[str, str]]:
        """Return the endpoint of a request's path, and what is variable in that. Raises: HTTPException.

        A path without an endpoint is taken for another spelling of one that has, and becomes that one: so
        the scope, the error format and the metrics are those of the endpoint.
        """
        try:
            rule, arguments = self._routes.match(request.path, request.method, return_rule=True)
        except NotFound:
            known = (path for path in other_spellings(request.path) if self._suggestion(path, request.method))
            if (meant := next(known, None)) is None:
                raise
            request.path = meant
            rule, arguments = self._routes.match(request.path, request.method, return_rule=True)
        request.url_rule = cast("QuartRule", rule)
        return self._endpoints[request.url_rule.endpoint], arguments

    def errors_for(self, request: HttpRequest) -> ErrorFormat:
        """Return the format of errors for a request: that of its endpoint, or of the API its path is in."""
        if request.url_rule is not None:
            return self._endpoints[request.url_rule.endpoint].errors
        return self._formats.get(request.path) or format_of_unknown(request.path)

    def _suggestion(self, path: str, method: str) -> bool:
        """Whether another spelling has a route.

        One with a model's name in it only if it takes the method: nearly every path is `/v1/models/<path>`.
        """
        methods = self._routes.allowed_methods(path)
        return method in methods or (bool(methods) and path in self._fixed_paths)

    async def _before(self, request: HttpRequest, endpoint: Endpoint | None) -> Response | None:
        over_unix_socket = request.scope["server"] is None
        self._origin_checks.check(
            request.scope["headers"],
            method=request.method,
            encrypted=request.scheme == "https",
            any_host=over_unix_socket or (endpoint is not None and endpoint.any_host),
        )
        if self.cors.is_preflight(request.method, request.headers):
            return self.cors.preflight(request.headers)
        if request.sent(b"upgrade").lower() == "websocket":
            raise InvalidRequest(
                "WebSocket is not spoken here; POST /infer streams over plain HTTP, see /docs"
            )
        if request.method != "OPTIONS":
            request.client = await self.authorizer.admit(
                request.sent,
                frozenset() if endpoint is None else endpoint.scopes,
                address=request.remote_addr or "-",
                path=request.path,
            )
        return None

    def _on_error(self, request: HttpRequest, exception: Exception) -> Response:
        error = error_of(
            exception,
            path=request.path,
            method=request.method,
            request_id=request.id,
            limits=self.context.limits,
        )
        if error.status in BACKPRESSURE:
            self.context.metrics.http.count_backpressure(error.kind)
        errors = self.errors_for(request)
        return error_response(error, errors, request_id=request.id, exception=exception)


@cache  # It follows from the declarations alone, and takes a tenth of a second.
def _api_document() -> tuple[bytes, str]:
    """Return the OpenAPI document and its page."""
    document = openapi_document(ENDPOINTS)
    return json_bytes(document), docs_page(document)


def create_app(
    backend: Backend,
    settings: Settings,
    metrics: Metrics,
    *,
    limits: HttpLimits | None = None,
    authorizer: Authorizer | None = None,
    accounts: KeyAccounts | None = None,
    own_names: Iterable[str] = (),
) -> ModeldApp:
    """Return the app. It holds no tasks of its own; serve it with `modeld.http.server.listener.serve`.

    `limits` defaults to those that follow from the settings. Without a authorizer nobody needs a key; without
    accounts usage is counted from now on, and not kept. `own_names` are names of this machine.
    """
    document, page = _api_document()
    context = AppContext(
        backend=backend,
        settings=settings,
        limits=limits or http_limits(settings),
        metrics=metrics,
        accounts=accounts or KeyAccounts(metrics),
        authorizer=authorizer or Authorizer(None),
        openapi=document,
        docs_page=page,
    )
    return ModeldApp(context, own_names)
