# SPDX-License-Identifier: GPL-3.0-only
"""Limits and usage of API keys. Pure."""
