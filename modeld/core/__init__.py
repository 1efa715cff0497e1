# SPDX-License-Identifier: GPL-3.0-only
"""Pure: values in, values out. No Trio, clock, thread, randomness, files or environment."""
