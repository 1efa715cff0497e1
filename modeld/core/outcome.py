# SPDX-License-Identifier: GPL-3.0-only
"""What each part of a scheduling step returns."""

from __future__ import annotations

from modeld.core.effects import Effect
from modeld.core.fleet import Fleet

Outcome = tuple[Fleet, list[Effect]]
"""The fleet afterwards, and what is to be done about it."""
