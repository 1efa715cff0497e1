# SPDX-License-Identifier: GPL-3.0-only
"""Messages and functions to prompts."""
