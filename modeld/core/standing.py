# SPDX-License-Identifier: GPL-3.0-only
"""A request inside, as all decisions see it. Frozen."""

from __future__ import annotations

import msgspec

from modeld.core.instant import Instant
from modeld.core.request import Priority, Stake


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request, whether it waits for a lease or has one."""

    ticket: int
    arrived: Instant
    waiting_since: Instant
    """Where `max_wait` counts from: arrival, or the end of its model's load."""
    deadline: Instant | None = None
    priority: Priority = Priority.NORMAL
    keep_alive_s: float | None = None
    aside: bool = False
    """It needs no slot, and waits for none: it is granted as soon as its model is ready."""
    stake: Stake = Stake()
    deaths: int = 0
    """Engines that died while it was in a slot of theirs."""
