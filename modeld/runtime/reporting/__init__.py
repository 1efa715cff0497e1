# SPDX-License-Identifier: GPL-3.0-only
"""Report decisions, events and status."""
