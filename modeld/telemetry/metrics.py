# SPDX-License-Identifier: GPL-3.0-only
"""The daemon's Prometheus metrics: one registry a daemon, no globals. docs/metrics.md lists them.

Counts and durations are observed as they happen; gauges of the fleet are read off its status when
someone scrapes, so a scrape touches no model. Labels are bounded: models are ids of the catalogue,
paths are route templates, methods and reasons come from closed lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from modeld.core.events import Usage
from modeld.core.status import DaemonStatus
from modeld.telemetry.fleet_metrics import Metric, fleet_metrics

# The time a series began doubles their number and tells nobody anything.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client gives it no types

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that become labels; any other is `other`."""
OTHER = "other"

_SHORT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LONG_S = (*_SHORT_S, 600, 1800, 3600)
_RATES = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)


class Metrics:
    """All metrics of one daemon.

    Attributes:
      registry: what `/metrics` shows.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        # Series that every request adds to: to look one up by its labels takes longer than to add.
        self._http: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._of_model: dict[str, tuple[Histogram, Histogram, Counter, Counter, Counter]] = {}
        # HTTP
        self._http_requests = Counter(
            "modeld_http_requests_total",
            "Requests answered; status 499 is a client that left before its answer was complete",
            ("path", "method", "status"),
            registry=registry,
        )
        self._http_duration = Histogram(
            "modeld_http_request_duration_seconds",
            "From the request's headers to the end of its answer",
            ("path", "method"),
            buckets=_LONG_S,
            registry=registry,
        )
        self._http_inflight = Gauge(
            "modeld_http_inflight_requests", "Requests being answered", registry=registry
        )
        self._backpressure = Counter(
            "modeld_http_backpressure_total",
            "Requests refused for want of room or time (429, 503, 507), by the error's type",
            ("reason",),
            registry=registry,
        )
        # Requests for text
        self._ttft = Histogram(
            "modeld_time_to_first_token_seconds",
            "From arrival to first token",
            ("model",),
            buckets=_SHORT_S,
            registry=registry,
        )
        self._queue_wait = Histogram(
            "modeld_queue_wait_seconds",
            "Time without a slot, less the time the model took to load",
            ("model",),
            buckets=_SHORT_S,
            registry=registry,
        )
        self._duration = Histogram(
            "modeld_request_duration_seconds",
            "From arrival to last token",
            ("model",),
            buckets=_LONG_S,
            registry=registry,
        )
        self._rate = Histogram(
            "modeld_tokens_per_second",
            "Speed of single requests that gave at least two tokens, from first token to last",
            ("model",),
            buckets=_RATES,
            registry=registry,
        )
        self._finished = Counter(
            "modeld_requests_finished_total",
            "Requests by how they ended: a finish reason, or the type of an error",
            ("model", "reason"),
            registry=registry,
        )
        self._tokens_in = Counter("modeld_tokens_in_total", "Prompt tokens", ("model",), registry=registry)
        self._tokens_out = Counter(
            "modeld_tokens_out_total", "Generated tokens", ("model",), registry=registry
        )
        self._tokens_cached = Counter(
            "modeld_tokens_cached_total",
            "Prompt tokens that the prefix cache served",
            ("model",),
            registry=registry,
        )
        self._tokens_drafted = Counter(
            "modeld_tokens_drafted_total",
            "Tokens that prompt lookup guessed, by whether they came true",
            ("model", "accepted"),
            registry=registry,
        )
        self._asides = Counter(
            "modeld_vocabulary_requests_total",
            "Requests that needed no slot (tokenize, detokenize, apply-template), by how they ended",
            ("model", "reason"),
            registry=registry,
        )
        # Keys
        self._key_requests = Counter(
            "modeld_key_requests_total", "Requests of a key that were taken", ("key",), registry=registry
        )
        self._key_tokens = Counter(
            "modeld_key_tokens_total",
            "Tokens of a key's prompts (in) and answers (out)",
            ("key", "direction"),
            registry=registry,
        )
        self._key_refusals = Counter(
            "modeld_key_refusals_total",
            "Requests of a key that its limits refused, by limit (requests, tokens, day, concurrent)",
            ("key", "limit"),
            registry=registry,
        )
        # Instances
        self._loads = Counter(
            "modeld_loads_total", "Loads by outcome (ok, failed)", ("model", "outcome"), registry=registry
        )
        self._load_seconds = Histogram(
            "modeld_load_seconds",
            "Duration of loads that succeeded",
            ("model",),
            buckets=_SHORT_S,
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
        self._cancels = Counter(
            "modeld_cancels_total",
            "Clients that left, by where their request was (queued, loading, prefill, decode)",
            ("model", "phase"),
            registry=registry,
        )

        self._breakers = Counter(
            "modeld_breaker_opened_total",
            "Times that failures of the model opened its breaker",
            ("model",),
            registry=registry,
        )

        self._by_model = (
            *(self._ttft, self._queue_wait, self._duration, self._rate, self._load_seconds),
            *(self._finished, self._tokens_in, self._tokens_out, self._tokens_cached, self._tokens_drafted),
            *(self._asides, self._loads, self._evictions, self._cancels, self._breakers),
        )

    def watch_fleet(self, status: Callable[[], DaemonStatus]) -> None:
        """Show the fleet's gauges too, read off `status()` at each scrape. Call it once."""
        self.registry.register(_FleetCollector(status))

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type for this `Accept` header."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def http_began(self) -> None:
        """A request's headers are complete."""
        self._http_inflight.inc()

    def http_ended(self, *, path: str | None, method: str, status: int, duration_s: float) -> None:
        """The answer is complete, or the client left (499). `path` is the route; None: there is none."""
        self._http_inflight.dec()
        path = path or OTHER
        method = method if method in METHODS else OTHER
        key = (path, method, status)
        known = self._http.get(key)
        if known is None:
            requests = self._http_requests.labels(path, method, str(status))
            known = self._http[key] = requests, self._http_duration.labels(path, method)
        requests, duration = known
        requests.inc()
        duration.observe(duration_s)

    def http_refused(self, status: int) -> None:
        """A request was refused before it had a path: malformed, too slow, too long."""
        self._http_requests.labels(OTHER, OTHER, str(status)).inc()

    def count_backpressure(self, reason: str) -> None:
        """A request was refused for want of room or time; `reason` is the type of its error."""
        self._backpressure.labels(reason).inc()

    def observe_request(
        self,
        model: str,
        *,
        ttft_s: float | None,
        queue_s: float,
        duration_s: float,
        tokens_per_second: float,
        usage: Usage,
        reason: str,
    ) -> None:
        """A request for text ended. `model` is an id; `reason` a finish reason or an error's type."""
        known = self._of_model.get(model)
        if known is None:
            known = self._of_model[model] = (
                self._queue_wait.labels(model),
                self._duration.labels(model),
                self._tokens_in.labels(model),
                self._tokens_out.labels(model),
                self._tokens_cached.labels(model),
            )
        queue_wait, duration, tokens_in, tokens_out, tokens_cached = known
        if ttft_s is not None:
            self._ttft.labels(model).observe(ttft_s)
        queue_wait.observe(queue_s)
        duration.observe(duration_s)
        if tokens_per_second > 0:
            self._rate.labels(model).observe(tokens_per_second)
        self._finished.labels(model, reason).inc()
        tokens_in.inc(usage.prompt_tokens)
        tokens_out.inc(usage.completion_tokens)
        if usage.cached_tokens:
            tokens_cached.inc(usage.cached_tokens)
        if usage.drafted_tokens:
            rejected = usage.drafted_tokens - usage.accepted_tokens
            self._tokens_drafted.labels(model, "true").inc(usage.accepted_tokens)
            self._tokens_drafted.labels(model, "false").inc(rejected)

    def count_aside(self, model: str, reason: str) -> None:
        """A request that needed no slot ended; `reason` as in `observe_request`."""
        self._asides.labels(model, reason).inc()

    def count_key(self, key: str, usage: Usage) -> None:
        """A request of a key ended. `key` is its name; there are as many as the file of keys has."""
        self._key_requests.labels(key).inc()
        self._key_tokens.labels(key, "in").inc(usage.prompt_tokens)
        self._key_tokens.labels(key, "out").inc(usage.completion_tokens)

    def count_key_refusal(self, key: str, limit: str) -> None:
        """A request was refused by a limit of its key."""
        self._key_refusals.labels(key, limit).inc()

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
        """Drop the series of a model that is gone. Should it come back, they begin at 0."""
        self._of_model.pop(model, None)
        for metric in self._by_model:
            metric.remove_by_labels({"model": model})

    def count_cancel(self, model: str, phase: str) -> None:
        """A client left while its request was queued, loading, in prefill or in decode."""
        self._cancels.labels(model, phase).inc()


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
