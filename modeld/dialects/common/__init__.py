# SPDX-License-Identifier: GPL-3.0-only
"""Parsing and rendering shared by the dialects. Pure."""
