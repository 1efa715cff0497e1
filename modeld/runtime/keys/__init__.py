# SPDX-License-Identifier: GPL-3.0-only
"""API keys in force, their accounts and usage."""
