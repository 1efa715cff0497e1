# SPDX-License-Identifier: GPL-3.0-only
"""Loaded models, one task group each."""
