# SPDX-License-Identifier: GPL-3.0-only
"""The Quart-Trio app: routes and error handling put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

from quart import Request, Response
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, NotFound

from modeld.config.settings import Settings
from modeld.errors import InvalidRequest
from modeld.http.auth import Guard
from modeld.http.backend import Backend
from modeld.http.cors import Cors
from modeld.http.edge import Edge, EdgeRequest, serving
from modeld.http.envelopes import envelope_of
from modeld.http.errors import BACKPRESSURE, error_of, error_response
from modeld.http.exchange import Exchange
from modeld.http.limits import Limits, limits_of
from modeld.http.origin_checks import ANY_HOST, AllowedHosts, AllowedOrigins, OriginChecks
from modeld.http.paths import other_spellings
from modeld.http.routes.anthropic import AnthropicRoutes
from modeld.http.routes.control import ControlRoutes
from modeld.http.routes.embed import EmbedRoute
from modeld.http.routes.events import EventsRoute
from modeld.http.routes.infer import InferRoute
from modeld.http.routes.llamacpp import LlamaCppRoutes
from modeld.http.routes.meta import MetaRoutes
from modeld.http.routes.ollama import OllamaRoutes
from modeld.http.routes.openai import OpenAIRoutes
from modeld.http.routes.state import StateRoutes
from modeld.http.routes.table import AnyPath, View
from modeld.http.routes.usage import UsageRoutes
from modeld.http.routes.vocabulary import VocabularyRoutes
from modeld.runtime.accounts import Accounts
from modeld.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from quart.routing import QuartRule


class EdgeApp(QuartTrio):
    """The app, and what its requests need."""

    asgi_http_class = Exchange
    request_class = EdgeRequest

    def __init__(self, edge: Edge, guard: Guard, own_names: Iterable[str] = ()) -> None:
        super().__init__("modeld", static_folder=None)
        self.edge = edge
        self.guard = guard
        self.cors = Cors(edge.settings)
        self._origin_checks = OriginChecks(
            hosts=AllowedHosts.of(edge.settings, own_names) if guard.keyring is None else None,
            origins=AllowedOrigins.of(edge.settings),
        )
        self.config["RESPONSE_TIMEOUT"] = None  # Quart would cut every stream at 60 s, silently.
        self.config["BODY_TIMEOUT"] = edge.limits.body_timeout_s
        self.config["MAX_CONTENT_LENGTH"] = edge.limits.max_body_bytes
        self.config["PROPAGATE_EXCEPTIONS"] = False
        self.url_map.merge_slashes = False
        self.url_map.converters["path"] = AnyPath
        self._views: dict[str, View] = {}
        """By endpoint."""
        for rule, view, methods in (
            *StateRoutes(edge, guard).table(),
            *UsageRoutes(edge, guard).table(),
            *MetaRoutes(edge).table(),
            *InferRoute(edge).table(),
            *EmbedRoute(edge).table(),
            *EventsRoute(edge).table(),
            *VocabularyRoutes(edge).table(),
            *ControlRoutes(edge).table(),
            *OllamaRoutes(edge).table(),
            *OpenAIRoutes(edge).table(),
            *AnthropicRoutes(edge).table(),
            *LlamaCppRoutes(edge).table(),
        ):
            endpoint = f"{methods[0]} {rule}"
            self.add_url_rule(rule, endpoint, view, methods=methods)
            self._views[endpoint] = view
        self._routes = self.url_map.bind("modeld")

    async def handle_request(self, request: Request) -> Response:
        """Answer a request; what is raised on the way becomes an error's answer.

        In place of Quart's own way, which leads through two contexts, a session, six signals and callbacks.
        None of these is used here, and a short request spent much of its time on them (docs/performance.md).
        """
        own = cast("EdgeRequest", request)
        serving(own)
        try:
            return await self._answer(own)
        except Exception as error:  # noqa: BLE001  # `error_of` tells what is known, and logs the rest
            return self._on_error(own, error)

    async def _answer(self, request: EdgeRequest) -> Response:
        missing: HTTPException | None = None
        arguments: Mapping[str, str] = {}
        endpoint = ""
        try:
            endpoint, arguments = self._find(request)
        except HTTPException as error:
            missing = error  # Told when the guard was asked: who has no key learns nothing of paths.
        answer = await self._before(request)
        if answer is not None:
            return answer
        if missing is not None:
            raise missing
        if request.method == "OPTIONS":
            return Response("", headers={"Allow": ", ".join(self._routes.allowed_methods(request.path))})
        return await self._views[endpoint](**arguments)

    def _find(self, request: EdgeRequest) -> tuple[str, Mapping[str, str]]:
        """Return the endpoint of a request's path, and what is variable in that. Raises: HTTPException.

        A path without a route is taken for another spelling of one that has a route, and becomes that one: so
        the scope, the error format and the metrics are those of the endpoint.
        """
        try:
            rule, arguments = self._routes.match(request.path, request.method, return_rule=True)
        except NotFound:
            known = (path for path in other_spellings(request.path) if self._routes.allowed_methods(path))
            if (meant := next(known, None)) is None:
                raise
            request.path = meant
            rule, arguments = self._routes.match(request.path, request.method, return_rule=True)
        request.url_rule = cast("QuartRule", rule)
        return request.url_rule.endpoint, arguments

    async def _before(self, request: EdgeRequest) -> Response | None:
        over_unix_socket = request.scope["server"] is None
        rule = None if request.url_rule is None else request.url_rule.rule
        self._origin_checks.check(
            request.scope["headers"],
            method=request.method,
            encrypted=request.scheme == "https",
            any_host=over_unix_socket or rule in ANY_HOST,
        )
        if self.cors.is_preflight(request.method, request.headers):
            return self.cors.preflight(request.headers)
        if request.sent(b"upgrade").lower() == "websocket":
            raise InvalidRequest(
                "WebSocket is not spoken here; POST /infer streams over plain HTTP, see /docs"
            )
        if request.method != "OPTIONS":
            request.client = await self.guard.admit(request)
        return None

    def _on_error(self, request: EdgeRequest, exception: Exception) -> Response:
        error = error_of(
            exception,
            path=request.path,
            method=request.method,
            request_id=request.id,
            limits=self.edge.limits,
        )
        if error.status in BACKPRESSURE:
            self.edge.metrics.http.count_backpressure(error.kind)
        envelope = envelope_of(request.path)
        return error_response(error, envelope, request_id=request.id, exception=exception)


def create_app(
    backend: Backend,
    settings: Settings,
    metrics: Metrics,
    *,
    limits: Limits | None = None,
    guard: Guard | None = None,
    accounts: Accounts | None = None,
    own_names: Iterable[str] = (),
) -> EdgeApp:
    """Return the app. It holds no tasks of its own; serve it with `modeld.http.listener.serve`.

    `limits` defaults to those that follow from the settings. Without a guard nobody needs a key; without
    accounts usage is counted from now on, and not kept. `own_names` are names of this machine.
    """
    edge = Edge(
        backend=backend,
        settings=settings,
        limits=limits or limits_of(settings),
        metrics=metrics,
        accounts=accounts or Accounts(metrics),
    )
    return EdgeApp(edge, guard or Guard(None), own_names)
