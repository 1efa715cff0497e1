# SPDX-License-Identifier: GPL-3.0-only
"""The child's side of a one-shot process (`worker.oneshot`). Does not use Trio.

Such a program loads libraries that may crash or fill the memory. It imports them between `confined` and
`answer`, never before: until then a crash can leave a core file, and a lack of memory end the daemon instead.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import NoReturn

from modeld.worker.sandbox import become_oom_victim, die_with_parent, disable_core_dumps

_NICE = 5


def confined(arguments: list[str]) -> socket.socket:
    """Be such a process from here on; return the way to the daemon.

    `arguments` are those of the command line: descriptor, process id of the daemon, a name for `ps`.
    """
    descriptor, daemon = int(arguments[0]), int(arguments[1])
    if not die_with_parent(daemon):
        os._exit(1)
    become_oom_victim()
    disable_core_dumps()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    return sock


def answer(sock: socket.socket, data: bytes) -> NoReturn:
    """Say the one thing, and end."""
    sock.sendall(data)
    os._exit(0)  # Without the ends of libraries: the kernel takes everything back.
