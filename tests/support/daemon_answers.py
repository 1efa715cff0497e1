# SPDX-License-Identifier: GPL-3.0-only
"""States of a daemon for tests of how they are shown, as values with a fixed clock."""

from __future__ import annotations

import msgspec

from modeld.cli.answers import Value, read
from modeld.dialects.native.listing import ModelBody
from modeld.domain.status import DaemonStatus, Decision, DeviceStatus, InstanceStatus

NOW = 1_700_000_000.0
"""22:13:20 UTC."""


def answer(kind: type[Value], /, **keys: object) -> Value:
    """What the command line makes of an answer with these keys."""
    return read(msgspec.json.encode(keys), kind)


BUSY = answer(
    InstanceStatus, model_id="tinyllama-1.1b-chat.Q4_K_M.gguf", state="ready", last_used_unix=NOW - 1,
    est_vram_mb=1100.4, measured_mb=1043.77, queue_len=5, inflight=4, slots=4, busy_slots=4, load_ms=2345.0,
    tokens_per_second=51.23, kv_cells=8192, pid=4711, ttl_s=600.0, eta_ms=1800.0,
)  # fmt: skip
IDLE = answer(
    InstanceStatus, model_id="small.gguf", state="ready", last_used_unix=NOW - 192, est_vram_mb=20.6, slots=4,
    pinned=True, kv_cells=2048, pid=4712, restarts=2,
)  # fmt: skip
LOADING = answer(
    InstanceStatus,
    model_id="big.gguf",
    state="loading",
    est_vram_mb=590.0,
    queue_len=1,
    load_progress=0.4,
    slots=4,
)
BROKEN = answer(
    InstanceStatus,
    model_id="bad.gguf",
    state="error",
    last_error="its file is damaged:\n\x1b[31mno tensors",
    restarts=5,
)
GONE = answer(
    InstanceStatus, model_id="old.gguf", state="stopped", last_used_unix=NOW - 90_000, est_vram_mb=300.0
)
DECISIONS = (
    answer(Decision, at_unix=NOW - 200, action="load", model_id="small.gguf", reason="it is to be preloaded"),
    answer(Decision, at_unix=NOW - 198, action="ready", model_id="small.gguf", reason="it was loaded"),
    answer(
        Decision, at_unix=NOW - 60, action="evict", model_id="old.gguf",
        reason="big.gguf needs 590 MiB, 120 MiB are free, and it was idle longest",
    ),
    answer(Decision, at_unix=NOW - 59, action="load", model_id="big.gguf", reason="1 requests wait for it"),
    answer(
        Decision, at_unix=NOW - 2, action="refuse", model_id="big.gguf", reason="the queue is full",
        numbers={"times": 7},
    ),
)  # fmt: skip
STATUS = answer(
    DaemonStatus, state="ready", version="0.1.0", server_time_unix=NOW, uptime_seconds=7503, budget_mb=2048,
    margin_mb=64, instances=(BROKEN, LOADING, GONE, IDLE, BUSY), used_est_mb=1711.0, reserved_mb=590.0,
    loads_total=12,
    evictions_total=1, queued_total=6, inflight_total=4,
    decisions=DECISIONS,
    devices=(answer(DeviceStatus, name="CPU", total_mb=7950.0, free_mb=3200.5),),
)  # fmt: skip
MODELS = (
    answer(
        ModelBody, id="tinyllama-1.1b-chat.Q4_K_M.gguf", quant="Q4_K_M", family="llama",
        size_bytes=668_788_096, context_length=2048, parameters=1_100_048_384, state="ready",
        kv_cells=8192, slots=4,
        aliases=("tinyllama-1.1b-chat.Q4_K_M", "tiny", "chat"), default=True, pinned=True, est_vram_mb=1100.4,
    ),
    answer(ModelBody, id="bad.gguf", size_bytes=12, error="its file is damaged: no tensors"),
)  # fmt: skip
