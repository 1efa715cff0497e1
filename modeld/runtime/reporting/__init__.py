# SPDX-License-Identifier: GPL-3.0-only
"""Decisions, events and status as they are told to others."""
