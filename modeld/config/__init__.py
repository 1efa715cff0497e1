# SPDX-License-Identifier: GPL-3.0-only
"""Settings: their sources, kinds and checks."""
