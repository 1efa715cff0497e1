# SPDX-License-Identifier: GPL-3.0-only
"""Tell a hanging engine from a slow one, by counting checks without a sign of life."""

from __future__ import annotations

from collections.abc import Callable

import trio

from modeld.domain.instance_state import InstanceState

LOOKS = 8
"""So many looks without a sign of life make a stall; they are `stall_timeout / LOOKS` apart.

Looks are counted, not seconds: when the daemon itself did not run for a while (stopped, or starved of
CPU), that is one look, and the signs that waited meanwhile are read before the next one.
"""


class StallDetector:
    """Counts looks at a worker between signs of life."""

    def __init__(self) -> None:
        self._silent = 0
        self._busy = False
        self._pulse: object = None

    def alive(self) -> None:
        """Take in a sign of life: a message."""
        self._silent = 0

    def check(self, *, busy: bool, pulse: object = None) -> bool:
        """Look once more; return whether it hangs.

        `busy`: it has something to do. `pulse`: a value that changes while it works at something it sends
        no message about (a load); None where only messages count.
        """
        moved = pulse is not None and pulse != self._pulse
        self._pulse = pulse
        if not busy or not self._busy or moved:
            self._silent = 0
        else:
            self._silent += 1
        self._busy = busy
        return self._silent >= LOOKS


async def first_stall(look: Callable[[], bool], stall_timeout_s: float) -> None:
    """Return when `look` says that there is a stall; it is called every `stall_timeout_s / LOOKS` seconds."""
    while True:
        await trio.sleep(stall_timeout_s / LOOKS)
        if look():
            return


def describe_stall(model_id: str, state: InstanceState, stall_timeout_s: float) -> str:
    """Say that the engine of a model, which is in this state, hangs."""
    doing = {InstanceState.LOADING: "was loaded", InstanceState.DRAINING: "was unloaded"}.get(state, "served")
    return (
        f"the engine of model {model_id} hangs: no sign of life for {stall_timeout_s:g} s "
        f"(stall_timeout) while it {doing}"
    )
