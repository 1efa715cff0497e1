# SPDX-License-Identifier: GPL-3.0-only
"""What the dialects have in common. Pure."""
