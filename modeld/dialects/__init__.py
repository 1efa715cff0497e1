# SPDX-License-Identifier: GPL-3.0-only
"""Parse bodies into orders, and render events to bytes. Pure."""
