# SPDX-License-Identifier: GPL-3.0-only
"""Values that every layer shares: requests, models, events. Pure."""
