# SPDX-License-Identifier: GPL-3.0-only
"""The one-shot process of a dry run: `python -m modeld.worker.dry_run_child FD DAEMON MODEL`.

Started by `worker.oneshot` alone. Once it is confined, `dry_run_answer` does the work.
"""

from __future__ import annotations

import logging
import os
import socket
import sys

import msgspec

from modeld.worker.messages import Start, frames_to_worker, load_of
from modeld.worker.oneshot_child import answer, confined
from modeld.worker.sandbox import limit_resources

_MEMORY_BYTES = 2 << 30
_CPU_S = 10
_CHUNK = 65536


def _first_message(sock: socket.socket) -> Start:
    frames = frames_to_worker()
    while data := sock.recv(_CHUNK):
        for message in frames.feed(data):
            if isinstance(message, Start):
                return message
    os._exit(1)


if __name__ == "__main__":
    daemon = confined(sys.argv[1:])
    start = _first_message(daemon)
    logging.basicConfig(level=logging.ERROR)
    limit_resources(memory=_MEMORY_BYTES, cpu_s=_CPU_S)
    from modeld.worker.dry_run_answer import dry_run_of

    answer(daemon, msgspec.json.encode(dry_run_of(load_of(start), _MEMORY_BYTES)))
