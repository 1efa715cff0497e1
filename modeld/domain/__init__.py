# SPDX-License-Identifier: GPL-3.0-only
"""Values that all layers share: requests, models, events. Pure."""
