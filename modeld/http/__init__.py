# SPDX-License-Identifier: GPL-3.0-only
"""The Quart-Trio app and the guarded Hypercorn listener."""
