# SPDX-License-Identifier: GPL-3.0-only
"""Decide what is loaded, evicted, admitted and granted: `step(fleet, input, now)`. Pure."""
