# SPDX-License-Identifier: GPL-3.0-only
"""The console's commands, each module imported when one of its commands runs."""
