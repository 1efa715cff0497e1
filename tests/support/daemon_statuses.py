# SPDX-License-Identifier: GPL-3.0-only
"""The status of a daemon with one loaded model."""

from __future__ import annotations

from modeld.domain.instance_state import InstanceState
from modeld.domain.status import DaemonStatus, InstanceStatus


def instance_status(model_id: str, **more: object) -> InstanceStatus:
    """One that is ready: two of its four slots are busy."""
    known = {
        "state": InstanceState.READY,
        "last_used_unix": 1.0,
        "est_vram_mb": 100.0,
        "measured_mb": 110.0,
        "queue_len": 1,
        "inflight": 2,
        "max_queue_depth": 32,
        "slots": 4,
        "busy_slots": 2,
        "restarts": 3,
    }
    return InstanceStatus(model_id=model_id, **known | more)


def daemon_status(*instances: InstanceStatus, **more: object) -> DaemonStatus:
    """A daemon with these instances in a budget of 1,000 MiB, of which they take 100."""
    known = {
        "state": "ready",
        "version": "1.2.3",
        "node_id": "node",
        "server_time_unix": 2.0,
        "uptime_seconds": 1.0,
        "budget_mb": 1000.0,
        "used_est_mb": 100.0,
        "reserved_mb": 0.0,
        "unaccounted_mb": 0.0,
        "margin_mb": 0.0,
    }
    return DaemonStatus(instances=instances, **known | more)
