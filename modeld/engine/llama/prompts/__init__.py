# SPDX-License-Identifier: GPL-3.0-only
"""Turn messages and functions into prompts."""
