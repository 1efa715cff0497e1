# SPDX-License-Identifier: GPL-3.0-only
"""One file for each group of endpoints."""
