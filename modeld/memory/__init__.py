# SPDX-License-Identifier: GPL-3.0-only
"""Arithmetic of bytes: devices, layer placement, sizes, calibration. Pure."""
