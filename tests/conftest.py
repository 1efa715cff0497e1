# SPDX-License-Identifier: GPL-3.0-only
"""What all tests share: hypothesis must not mistake a busy machine for a slow test."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "modeld",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("modeld")
