# SPDX-License-Identifier: GPL-3.0-only
"""Metrics of requests by model."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from modeld.domain.request_events import Usage

# ----------------------------------------------------------------------
# The bounds of the histograms of durations, in seconds.

SHORT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LONG_S = (*SHORT_S, 600, 1800, 3600)


# ----------------------------------------------------------------------

_RATES = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)


class RequestMetrics:
    """Observes requests as they end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Series that every request adds to: to look one up by its labels takes longer than to add.
        self._known: dict[str, tuple[Histogram, Histogram, Counter, Counter, Counter]] = {}
        self._ttft = Histogram(
            "modeld_time_to_first_token_seconds",
            "From arrival to first token",
            ("model",),
            buckets=SHORT_S,
            registry=registry,
        )
        self._queue_wait = Histogram(
            "modeld_queue_wait_seconds",
            "Time without a slot, less the time the model took to load",
            ("model",),
            buckets=SHORT_S,
            registry=registry,
        )
        self._duration = Histogram(
            "modeld_request_duration_seconds",
            "From arrival to last token",
            ("model",),
            buckets=LONG_S,
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
        self._cancels = Counter(
            "modeld_cancels_total",
            "Clients that left, by where their request was (queued, loading, prefill, decode)",
            ("model", "phase"),
            registry=registry,
        )
        self._by_model = (
            *(self._ttft, self._queue_wait, self._duration, self._rate, self._finished),
            *(self._tokens_in, self._tokens_out, self._tokens_cached, self._tokens_drafted),
            *(self._asides, self._cancels),
        )

    def observe(
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
        known = self._known.get(model)
        if known is None:
            known = self._known[model] = (
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

    def count_without_slot(self, model: str, reason: str) -> None:
        """A request that needed no slot ended; `reason` as in `observe`."""
        self._asides.labels(model, reason).inc()

    def count_cancel(self, model: str, phase: str) -> None:
        """A client left while its request was queued, loading, in prefill or in decode."""
        self._cancels.labels(model, phase).inc()

    def forget(self, model: str) -> None:
        """Drop the series of a model that is gone."""
        self._known.pop(model, None)
        for metric in self._by_model:
            metric.remove_by_labels({"model": model})
