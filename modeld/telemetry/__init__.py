# SPDX-License-Identifier: GPL-3.0-only
"""Logs, events and metrics."""
