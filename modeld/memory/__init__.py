# SPDX-License-Identifier: GPL-3.0-only
"""Arithmetic of bytes: devices, the placement of layers, sizes, calibration. Pure."""
