# SPDX-License-Identifier: GPL-3.0-only
"""How commands wait between two questions to the daemon."""

from __future__ import annotations

import time


def pause(seconds: float) -> None:
    """Let time pass; nothing when `seconds` is not positive. Ctrl-C ends it with KeyboardInterrupt.

    Commands are one thread without an event loop and do one thing at a time, so this blocks nobody. What
    they wait for next is a moment to ask again, and no event tells of that.
    """
    if seconds > 0:
        time.sleep(seconds)  # a command has one thread, and nothing else to do
