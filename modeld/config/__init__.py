# SPDX-License-Identifier: GPL-3.0-only
"""Settings: where they come from, and what they may be."""
