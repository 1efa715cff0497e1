# SPDX-License-Identifier: GPL-3.0-only
"""The commands; each file is imported when one of its commands is called."""
