# SPDX-License-Identifier: GPL-3.0-only
"""The daemon's Prometheus metrics, one registry per daemon. docs/metrics.md lists them.

Counts and durations are observed as they happen; gauges of the fleet are read off its status when
someone scrapes, so a scrape touches no model. Labels are bounded: models are ids of the catalogue,
paths are route templates, methods and reasons come from closed lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from modeld.domain.request_events import Usage
from modeld.domain.status import DaemonStatus
from modeld.telemetry.fleet_gauges import Metric, fleet_metrics
from modeld.telemetry.request_metrics import LONG_S, SHORT_S, RequestMetrics

# ----------------------------------------------------------------------
# Metrics of the HTTP edge: what was answered, and how long that took.

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


# ----------------------------------------------------------------------
# Metrics of what becomes of models: loads, evictions, failures, and what operators asked for.


class InstanceMetrics:
    """Counts what happens to instances."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._loads = Counter(
            "modeld_loads_total", "Loads by outcome (ok, failed)", ("model", "outcome"), registry=registry
        )
        self._load_seconds = Histogram(
            "modeld_load_seconds",
            "Duration of loads that succeeded",
            ("model",),
            buckets=SHORT_S,
            registry=registry,
        )
        self._evictions = Counter(
            "modeld_evictions_total", "Models unloaded, by reason", ("model", "reason"), registry=registry
        )
        self._operations = Counter(
            "modeld_operations_total",
            "What operators asked for (load, unload, switch), by how it ended: done, failed, cancelled",
            ("kind", "outcome"),
            registry=registry,
        )
        self._breakers = Counter(
            "modeld_breaker_opened_total",
            "Times that failures of the model opened its breaker",
            ("model",),
            registry=registry,
        )
        self._by_model = (self._load_seconds, self._loads, self._evictions, self._breakers)

    def observe_load(self, model: str, seconds: float, *, ok: bool) -> None:
        """A load ended after `seconds`."""
        self._loads.labels(model, "ok" if ok else "failed").inc()
        if ok:
            self._load_seconds.labels(model).observe(seconds)

    def count_eviction(self, model: str, reason: str) -> None:
        """A model was unloaded; `reason` from a closed list (room, ttl, changed, ...)."""
        self._evictions.labels(model, reason).inc()

    def count_operation(self, kind: str, outcome: str) -> None:
        """An operation ended; `outcome` is its state."""
        self._operations.labels(kind, outcome).inc()

    def count_breaker(self, model: str) -> None:
        """The breaker of a model opened."""
        self._breakers.labels(model).inc()

    def forget(self, model: str) -> None:
        """Drop the series of a model that is gone."""
        for metric in self._by_model:
            metric.remove_by_labels({"model": model})


# ----------------------------------------------------------------------
# Metrics of keys: what each used, and what its limits refused.


class KeyMetrics:
    """Counts by the names of keys; there are as many as the file of keys has."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "modeld_key_requests_total", "Requests of a key that were taken", ("key",), registry=registry
        )
        self._tokens = Counter(
            "modeld_key_tokens_total",
            "Tokens of a key's prompts (in) and answers (out)",
            ("key", "direction"),
            registry=registry,
        )
        self._refusals = Counter(
            "modeld_key_refusals_total",
            "Requests of a key that its limits refused, by limit (requests, tokens, day, concurrent)",
            ("key", "limit"),
            registry=registry,
        )

    def count(self, key: str, usage: Usage) -> None:
        """A request of a key ended."""
        self._requests.labels(key).inc()
        self._tokens.labels(key, "in").inc(usage.prompt_tokens)
        self._tokens.labels(key, "out").inc(usage.completion_tokens)

    def count_refusal(self, key: str, limit: str) -> None:
        """A request was refused by a limit of its key."""
        self._refusals.labels(key, limit).inc()


# ----------------------------------------------------------------------

# The time a series began doubles their number and tells nobody anything.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client gives it no types


class Metrics:
    """All metrics of one daemon, each part for those who tell of it.

    Attributes:
      registry: what `/metrics` shows.
      http: for the HTTP edge.
      requests: for requests for text.
      instances: for what becomes of models.
      keys: for what keys use.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http = HttpMetrics(self.registry)
        self.requests = RequestMetrics(self.registry)
        self.keys = KeyMetrics(self.registry)
        self.instances = InstanceMetrics(self.registry)

    def watch_fleet(self, status: Callable[[], DaemonStatus]) -> None:
        """Show the fleet's gauges too, read off `status()` at each scrape. Call it once."""
        self.registry.register(_FleetCollector(status))

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type for this `Accept` header."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def forget(self, model: str) -> None:
        """Drop the series of a model that is gone. Should it come back, they begin at 0."""
        self.requests.forget(model)
        self.instances.forget(model)


class _FleetCollector(Collector):
    """Reads the fleet's status at each scrape."""

    def __init__(self, status: Callable[[], DaemonStatus]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first scrape; the registry must not ask for it."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the gauges of this moment."""
        return fleet_metrics(self._status())
