# SPDX-License-Identifier: GPL-3.0-only
"""Footprints and device memory, as they are measured."""
