# SPDX-License-Identifier: GPL-3.0-only
"""What there is about the API itself: metrics, the OpenAPI document, and a page to read it."""

from __future__ import annotations

from collections.abc import Iterable

from quart import Response

from modeld.dialects.framing import json_bytes
from modeld.http.docs_page import CONTENT_SECURITY_POLICY, docs_page
from modeld.http.edge import Edge, current_request
from modeld.http.openapi import openapi_document
from modeld.http.reply import json_reply
from modeld.http.routes.table import Route


class MetaRoutes:
    """`/metrics`, `/openapi.json`, `/docs`."""

    def __init__(self, edge: Edge) -> None:
        self._metrics = edge.metrics
        document = openapi_document()
        self._document = json_bytes(document)
        self._page = docs_page(document)

    def table(self) -> Iterable[Route]:
        """Return the routes."""
        return (
            ("/metrics", self.metrics, ["GET"]),
            ("/openapi.json", self.openapi, ["GET"]),
            ("/docs", self.docs, ["GET"]),
        )

    async def metrics(self) -> Response:
        """Prometheus' text format, or OpenMetrics for those who ask for it."""
        data, content_type = self._metrics.expose(current_request().headers.get("Accept", ""))
        return Response(data, content_type=content_type)

    async def openapi(self) -> Response:
        """Return the OpenAPI 3.1 document."""
        return json_reply(self._document)

    async def docs(self) -> Response:
        """One page that needs nothing from elsewhere."""
        response = Response(self._page, content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response
