# SPDX-License-Identifier: GPL-3.0-only
"""Serve many llama.cpp models from one machine, inside a memory budget."""

__version__ = "0.1.0"
