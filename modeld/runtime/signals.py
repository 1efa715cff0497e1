# SPDX-License-Identifier: GPL-3.0-only
"""SIGTERM and SIGINT: the first asks the daemon to stop, the second to stop waiting."""

from __future__ import annotations

import signal

import trio


class StopSignals:
    """Two events that the operator's signals set.

    Attributes:
      first: stop gracefully.
      second: stop now.
    """

    def __init__(self) -> None:
        self.first = trio.Event()
        self.second = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled. The handlers of before are put back at the end."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                (self.second if self.first.is_set() else self.first).set()
