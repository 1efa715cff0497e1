# SPDX-License-Identifier: GPL-3.0-only
"""Handle SIGTERM and SIGINT (stop; the second time without waiting) and SIGHUP (reload)."""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio


class StopSignals:
    """What the operator's signals set off.

    Args:
      on_hangup: called in the event loop at each SIGHUP, which never ends the daemon.

    Attributes:
      first: stop gracefully.
      second: stop now.
    """

    def __init__(self, on_hangup: Callable[[], None] = lambda: None) -> None:
        self._on_hangup = on_hangup
        self.first = trio.Event()
        self.second = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled. The handlers of before are put back at the end."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self._on_hangup()
                else:
                    (self.second if self.first.is_set() else self.first).set()
