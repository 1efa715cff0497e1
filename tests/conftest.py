# SPDX-License-Identifier: GPL-3.0-only
"""What all tests share: a busy machine is no slow test, and Ctrl-C reaches whom tests start."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

settings.register_profile(
    "modeld",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("modeld")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # A shell has it so for what runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
