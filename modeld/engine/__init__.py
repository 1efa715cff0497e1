# SPDX-License-Identifier: GPL-3.0-only
"""Synchronous: one model inside llama.cpp. Knows neither HTTP nor Trio."""
