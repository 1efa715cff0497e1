# SPDX-License-Identifier: GPL-3.0-only
"""Measured footprints and device memory."""
