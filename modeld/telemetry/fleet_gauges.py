# SPDX-License-Identifier: GPL-3.0-only
"""Compute the fleet's gauges from its status. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB
from modeld.domain.status import DaemonStatus, DeviceStatus, EventsStatus, InstanceStatus

__all__ = ["Metric", "fleet_metrics"]

_MODEL = ("model",)


def fleet_metrics(status: DaemonStatus) -> Iterable[Metric]:
    """Return the gauges for one moment. Memory is in bytes, as Prometheus wants base units."""
    yield InfoMetricFamily(
        "modeld_build", "This daemon", value={"version": status.version, "node_id": status.node_id}
    )
    yield GaugeMetricFamily("modeld_uptime_seconds", "Time since the start", value=status.uptime_seconds)
    yield GaugeMetricFamily(
        "modeld_budget_bytes", "Memory budget; 0 is unlimited", value=status.budget_mb * MIB
    )
    if status.effective_budget_mb is not None:
        yield GaugeMetricFamily(
            "modeld_budget_effective_bytes",
            "Of the budget, what can be given out while other processes hold memory",
            value=status.effective_budget_mb * MIB,
        )
    yield GaugeMetricFamily(
        "modeld_margin_bytes", "Of the budget, what is never given out", value=status.margin_mb * MIB
    )
    yield GaugeMetricFamily(
        "modeld_budget_used_bytes", "Estimate of what the models hold", value=status.used_est_mb * MIB
    )
    yield GaugeMetricFamily(
        "modeld_budget_reserved_bytes",
        "Of what is used, what belongs to loads under way",
        value=status.reserved_mb * MIB,
    )
    yield GaugeMetricFamily(
        "modeld_unaccounted_bytes",
        "Memory that was not seen to come back after a model was unloaded",
        value=status.unaccounted_mb * MIB,
    )
    yield _devices(status.devices)
    yield from _instances(status.instances)
    yield from _events(status.events)


def _devices(devices: Iterable[DeviceStatus]) -> Metric:
    memory = GaugeMetricFamily(
        "modeld_device_memory_bytes",
        "Memory of a device: its total, what is free, what models and what others hold, what models may hold",
        labels=("device", "state"),
    )
    for it in devices:
        sizes = {"total": it.total_mb, "free": it.free_mb, "ours": it.ours_mb, "foreign": it.foreign_mb}
        if it.effective_mb is not None:
            sizes["effective"] = it.effective_mb
        for state, size in sizes.items():
            memory.add_metric((it.name, state), size * MIB)
    return memory


def _events(events: EventsStatus) -> Iterable[Metric]:
    recorded = CounterMetricFamily("modeld_events", "What happened, by kind", labels=("kind",))
    for kind, count in sorted(events.recorded.items()):
        recorded.add_metric((str(kind),), count)
    yield recorded
    yield CounterMetricFamily(
        "modeld_events_written", "Events written to standard output or the file", value=events.written
    )
    yield CounterMetricFamily(
        "modeld_events_dropped", "Events that could not be written there", value=events.dropped
    )
    yield GaugeMetricFamily(
        "modeld_events_blocked",
        "1 while events cannot be written; /status says why",
        value=float(events.problem is not None),
    )
    yield GaugeMetricFamily("modeld_events_readers", "Clients that read GET /events", value=events.readers)
    yield CounterMetricFamily(
        "modeld_events_missed", "Events that those clients were too slow for", value=events.missed
    )


def _instances(instances: Iterable[InstanceStatus]) -> Iterable[Metric]:
    state = GaugeMetricFamily(
        "modeld_instance_state",
        "1 for the state the model is in, else 0",
        labels=("model", "state"),
    )
    slots = GaugeMetricFamily("modeld_slots", "Slots for requests", labels=_MODEL)
    busy = GaugeMetricFamily("modeld_slots_busy", "Slots with a request in them", labels=_MODEL)
    queue = GaugeMetricFamily("modeld_queue_length", "Requests that wait for a slot", labels=_MODEL)
    estimated = GaugeMetricFamily(
        "modeld_estimated_bytes", "Memory the model is estimated to take", labels=_MODEL
    )
    measured = GaugeMetricFamily(
        "modeld_measured_bytes", "Memory the loaded model was seen to take", labels=_MODEL
    )
    ratio = GaugeMetricFamily(
        "modeld_footprint_ratio",
        "What loads have taught: the estimate of the next load is so many times the first one",
        labels=_MODEL,
    )
    rate = GaugeMetricFamily(
        "modeld_instance_tokens_per_second",
        "Tokens a second of the last ten seconds, over all slots",
        labels=_MODEL,
    )
    restarts = CounterMetricFamily("modeld_restarts", "Times the model's engine died", labels=_MODEL)
    for it in instances:
        label = (it.model_id,)
        for each in InstanceState:
            state.add_metric((it.model_id, each.value), float(it.state is each))
        slots.add_metric(label, it.slots)
        busy.add_metric(label, it.busy_slots)
        queue.add_metric(label, it.queue_len)
        estimated.add_metric(label, it.est_vram_mb * MIB)
        if it.measured_mb is not None:
            measured.add_metric(label, it.measured_mb * MIB)
        ratio.add_metric(label, it.learned_ratio)
        rate.add_metric(label, it.tokens_per_second)
        restarts.add_metric(label, it.restarts)
    return (state, slots, busy, queue, estimated, measured, ratio, rate, restarts)
