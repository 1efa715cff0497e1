# SPDX-License-Identifier: GPL-3.0-only
"""Metrics of the HTTP edge: what was answered, and how long that took."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from modeld.telemetry.buckets import LONG_S

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that become labels; any other is `other`."""
OTHER = "other"


class HttpMetrics:
    """Counts requests as HTTP sees them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Series that every request adds to: to look one up by its labels takes longer than to add.
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._requests = Counter(
            "modeld_http_requests_total",
            "Requests answered; status 499 is a client that left before its answer was complete",
            ("path", "method", "status"),
            registry=registry,
        )
        self._duration = Histogram(
            "modeld_http_request_duration_seconds",
            "From the request's headers to the end of its answer",
            ("path", "method"),
            buckets=LONG_S,
            registry=registry,
        )
        self._inflight = Gauge("modeld_http_inflight_requests", "Requests being answered", registry=registry)
        self._backpressure = Counter(
            "modeld_http_backpressure_total",
            "Requests refused for want of room or time (429, 503, 507), by the error's type",
            ("reason",),
            registry=registry,
        )

    def began(self) -> None:
        """A request's headers are complete."""
        self._inflight.inc()

    def ended(self, *, path: str | None, method: str, status: int, duration_s: float) -> None:
        """The answer is complete, or the client left (499). `path` is the route; None: there is none."""
        self._inflight.dec()
        path = path or OTHER
        method = method if method in METHODS else OTHER
        key = (path, method, status)
        known = self._known.get(key)
        if known is None:
            requests = self._requests.labels(path, method, str(status))
            known = self._known[key] = requests, self._duration.labels(path, method)
        requests, duration = known
        requests.inc()
        duration.observe(duration_s)

    def refused(self, status: int) -> None:
        """A request was refused before it had a path: malformed, too slow, too long."""
        self._requests.labels(OTHER, OTHER, str(status)).inc()

    def count_backpressure(self, reason: str) -> None:
        """A request was refused for want of room or time; `reason` is the type of its error."""
        self._backpressure.labels(reason).inc()
