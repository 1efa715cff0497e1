# SPDX-License-Identifier: GPL-3.0-only
"""Pure: bodies to orders, events to bytes."""
