# SPDX-License-Identifier: GPL-3.0-only
"""The endpoints, one file for each API."""
