# SPDX-License-Identifier: GPL-3.0-only
"""Where an engine lives."""
