# SPDX-License-Identifier: GPL-3.0-only
"""Points in time, as all decisions count them. Nobody in `core` asks a clock: they are given `now`."""

from __future__ import annotations

Instant = float
"""Seconds on the scheduler's monotonic clock."""
