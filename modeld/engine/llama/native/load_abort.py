# SPDX-License-Identifier: GPL-3.0-only
"""Abort a load after its weights are read: before the context, or during the first decode.

The first decode reads a mapped file from the disk, which may take long; llama.cpp asks nobody then
but the flag. So a thread asks in its place.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator

from modeld.engine.llama.native.model import AbortFlag
from modeld.engine.protocol import LoadAborted, OnProgress

_INTERVAL = 0.05
"""Seconds between two questions."""


@contextlib.contextmanager
def abortable(flag: AbortFlag, on_progress: OnProgress, model_id: str) -> Generator[None]:
    """Raise the flag as soon as `on_progress` says False, and let it down at the end.

    `on_progress` is called here and then from a thread, never from both at once. A model whose state is
    recurrent does not look at the flag; its first decode ends by itself.
    Raises: LoadAborted at the beginning, and at the end instead of what the body raised.
    """
    if not on_progress(1.0):
        raise LoadAborted(f"the load of {model_id} was given up")
    done = threading.Event()

    def ask() -> None:
        while not done.wait(_INTERVAL):
            if not on_progress(1.0):
                flag.up()
                return

    thread = threading.Thread(target=ask, name="modeld-load", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        given_up = flag.raised
        flag.down()
        if given_up:
            raise LoadAborted(f"the load of {model_id} was given up")
