# SPDX-License-Identifier: GPL-3.0-only
"""Metrics of what becomes of models: loads, evictions, failures, and what operators asked for."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from modeld.telemetry.buckets import SHORT_S


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
