# SPDX-License-Identifier: GPL-3.0-only
"""The bounds of the histograms of durations, in seconds."""

from __future__ import annotations

SHORT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LONG_S = (*SHORT_S, 600, 1800, 3600)
