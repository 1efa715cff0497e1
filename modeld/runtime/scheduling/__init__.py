# SPDX-License-Identifier: GPL-3.0-only
"""The event loop around the scheduler: inputs in, effects out."""
