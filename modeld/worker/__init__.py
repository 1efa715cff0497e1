# SPDX-License-Identifier: GPL-3.0-only
"""Workers: where an engine runs."""
