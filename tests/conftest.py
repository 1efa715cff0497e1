# SPDX-License-Identifier: GPL-3.0-only
"""What all tests share: a busy machine is no slow test, and Ctrl-C reaches whom tests start."""

from __future__ import annotations

import atexit
import os
import signal
import sys

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


def _close_files_of_llama_cpp() -> None:
    """Close the two files of /dev/null that llama_cpp opens when it is imported, and never closes.

    Python would tell of them as it ends, since here every warning is an error. Only then: the models of its
    high-level class, which tests compare with, write there.
    """
    utils = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if utils is not None:
            getattr(utils, name).close()


atexit.register(_close_files_of_llama_cpp)
