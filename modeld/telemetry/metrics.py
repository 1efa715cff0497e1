# SPDX-License-Identifier: GPL-3.0-only
"""The daemon's Prometheus metrics: one registry a daemon, no globals. docs/metrics.md lists them.

Counts and durations are observed as they happen; gauges of the fleet are read off its status when
someone scrapes, so a scrape touches no model. Labels are bounded: models are ids of the catalogue,
paths are route templates, methods and reasons come from closed lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from modeld.core.status import DaemonStatus
from modeld.telemetry.fleet_metrics import Metric, fleet_metrics
from modeld.telemetry.http_metrics import HttpMetrics
from modeld.telemetry.instance_metrics import InstanceMetrics
from modeld.telemetry.key_metrics import KeyMetrics
from modeld.telemetry.request_metrics import RequestMetrics

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
