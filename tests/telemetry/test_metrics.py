# SPDX-License-Identifier: GPL-3.0-only
"""What a scrape shows."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from support.daemon_statuses import daemon_status, instance_status

from modeld.domain.model import MIB
from modeld.domain.request_events import Usage
from modeld.domain.status import DaemonStatus, DeviceStatus
from modeld.telemetry.metrics import Metrics


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def status() -> DaemonStatus:
    return daemon_status(
        instance_status("a.gguf", queue_len=3, restarts=5),
        uptime_seconds=9.0,
        reserved_mb=10.0,
        unaccounted_mb=1.0,
        margin_mb=2.0,
        effective_budget_mb=700.0,
        devices=(
            DeviceStatus(
                name="CPU", total_mb=900, free_mb=500, ours_mb=200, foreign_mb=200, effective_mb=700
            ),
            DeviceStatus(name="CUDA0", total_mb=80, free_mb=30, kind="gpu"),
        ),
    )


def test_requests_are_counted_by_route_method_and_status() -> None:
    """A request is in flight until it ended; then it has a path, a method, a status and a duration."""
    metrics = Metrics()
    metrics.http.began()
    assert sample(metrics, "modeld_http_inflight_requests") == 1
    metrics.http.ended(path="/infer", method="POST", status=200, duration_s=0.1)
    assert sample(metrics, "modeld_http_inflight_requests") == 0
    assert sample(metrics, "modeld_http_requests_total", path="/infer", method="POST", status="200") == 1
    count = sample(metrics, "modeld_http_request_duration_seconds_count", path="/infer", method="POST")
    assert count == 1


def test_labels_do_not_grow_with_what_strangers_send() -> None:
    """Unknown paths and methods share one label."""
    metrics = Metrics()
    for method in ("BREW", "WHEN"):
        metrics.http.began()
        metrics.http.ended(path=None, method=method, status=404, duration_s=0)
    assert sample(metrics, "modeld_http_requests_total", path="other", method="other", status="404") == 2


def test_a_request_for_text_is_measured() -> None:
    """Tokens, waits, speed and outcome are kept by model; a speed or a first token that was not is not."""
    metrics = Metrics()
    usage = Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=2)
    for ttft, speed in ((0.05, 40.0), (None, 0.0)):
        metrics.requests.observe(
            "a", ttft_s=ttft, queue_s=0.1, duration_s=1, tokens_per_second=speed, usage=usage, reason="stop"
        )
    assert sample(metrics, "modeld_tokens_in_total", model="a") == 10
    assert sample(metrics, "modeld_tokens_out_total", model="a") == 14
    assert sample(metrics, "modeld_tokens_cached_total", model="a") == 4
    assert sample(metrics, "modeld_time_to_first_token_seconds_count", model="a") == 1
    assert sample(metrics, "modeld_tokens_per_second_count", model="a") == 1
    assert sample(metrics, "modeld_queue_wait_seconds_count", model="a") == 2
    assert sample(metrics, "modeld_requests_finished_total", model="a", reason="stop") == 2


def test_loads_evictions_and_cancels_are_counted() -> None:
    """Each has its outcome, reason or phase as a label; only good loads have a duration."""
    metrics = Metrics()
    metrics.instances.observe_load("a", 2.0, ok=True)
    metrics.instances.observe_load("a", 9.0, ok=False)
    metrics.instances.count_eviction("a", "room")
    metrics.requests.count_cancel("a", "prefill")
    metrics.http.count_backpressure("queue_full")
    assert sample(metrics, "modeld_loads_total", model="a", outcome="ok") == 1
    assert sample(metrics, "modeld_loads_total", model="a", outcome="failed") == 1
    assert sample(metrics, "modeld_load_seconds_sum", model="a") == 2.0
    assert sample(metrics, "modeld_evictions_total", model="a", reason="room") == 1
    assert sample(metrics, "modeld_cancels_total", model="a", phase="prefill") == 1
    assert sample(metrics, "modeld_http_backpressure_total", reason="queue_full") == 1


def test_the_fleet_is_read_at_the_scrape() -> None:
    """Gauges are those of the moment, in base units; each instance shows its state as 1."""
    metrics = Metrics()
    metrics.watch_fleet(status)
    assert sample(metrics, "modeld_budget_bytes") == 1000 * MIB
    assert sample(metrics, "modeld_budget_used_bytes") == 100 * MIB
    assert sample(metrics, "modeld_budget_reserved_bytes") == 10 * MIB
    assert sample(metrics, "modeld_unaccounted_bytes") == MIB
    assert sample(metrics, "modeld_estimated_bytes", model="a.gguf") == 100 * MIB
    assert sample(metrics, "modeld_measured_bytes", model="a.gguf") == 110 * MIB
    assert sample(metrics, "modeld_slots_busy", model="a.gguf") == 2
    assert sample(metrics, "modeld_queue_length", model="a.gguf") == 3
    assert sample(metrics, "modeld_restarts_total", model="a.gguf") == 5
    assert sample(metrics, "modeld_instance_state", model="a.gguf", state="ready") == 1
    assert sample(metrics, "modeld_instance_state", model="a.gguf", state="loading") == 0


def test_two_daemons_share_nothing() -> None:
    """Each has a registry of its own, so tests and embedders can have several in one process."""
    first, second = Metrics(), Metrics()
    first.http.count_backpressure("draining")
    assert sample(second, "modeld_http_backpressure_total", reason="draining") is None


def test_the_exposition_can_be_parsed() -> None:
    """Prometheus' own parser reads the text, and no creation times double the series."""
    metrics = Metrics()
    metrics.watch_fleet(status)
    metrics.http.count_backpressure("draining")
    data, content_type = metrics.expose("")
    assert content_type.startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(data.decode())}
    assert "modeld_http_backpressure" in names
    assert not any(name.endswith("_created") for name in names)
    assert b"# EOF" in metrics.expose("application/openmetrics-text; version=1.0.0")[0]


def test_a_model_that_is_gone_has_no_series_left() -> None:
    """None of what is counted by model stays, and what others count does."""
    metrics = Metrics()
    usage = Usage(prompt_tokens=3, completion_tokens=5, cached_tokens=1, drafted_tokens=2, accepted_tokens=1)
    for model in ("gone.gguf", "here.gguf"):
        metrics.requests.observe(
            model, ttft_s=0.1, queue_s=0, duration_s=1, tokens_per_second=9, usage=usage, reason="stop"
        )
        metrics.instances.observe_load(model, 1.0, ok=True)
        metrics.requests.count_without_slot(model, "stop")
        metrics.instances.count_eviction(model, "room")
        metrics.instances.count_breaker(model)
        metrics.requests.count_cancel(model, "decode")
    before = metrics.expose("")[0].decode()
    metrics.forget("gone.gguf")
    after = metrics.expose("")[0].decode()
    assert before.count("gone.gguf") == before.count("here.gguf") > 100
    assert (after.count("gone.gguf"), after.count("here.gguf")) == (0, before.count("here.gguf"))
    metrics.instances.count_breaker("gone.gguf")
    assert sample(metrics, "modeld_breaker_opened_total", model="gone.gguf") == 1


def test_the_memory_of_each_device_is_shown_by_who_holds_it() -> None:
    """What models may hold is left out where a device is not watched."""
    metrics = Metrics()
    metrics.watch_fleet(status)
    assert sample(metrics, "modeld_budget_effective_bytes") == 700 * MIB
    found = {
        state: sample(metrics, "modeld_device_memory_bytes", device="CPU", state=state)
        for state in ("total", "free", "ours", "foreign", "effective")
    }
    sizes = {"total": 900, "free": 500, "ours": 200, "foreign": 200, "effective": 700}
    assert found == {state: size * MIB for state, size in sizes.items()}
    assert sample(metrics, "modeld_device_memory_bytes", device="CUDA0", state="free") == 30 * MIB
    assert sample(metrics, "modeld_device_memory_bytes", device="CUDA0", state="effective") is None
