# SPDX-License-Identifier: GPL-3.0-only
"""The side of a process that answers once (`worker.once`). Without Trio, for which it has no use."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import NoReturn

from modeld.worker.bounds import die_with, leave_no_core, leave_the_daemon_alone

_NICE = 5


def answer_once(arguments: list[str], answer: Callable[[socket.socket], bytes]) -> NoReturn:
    """Be such a process: answer over the socket that the daemon left, and end.

    `arguments` are those of the command line: descriptor, process id of the daemon, a name for `ps`.
    """
    descriptor, daemon = int(arguments[0]), int(arguments[1])
    if not die_with(daemon):
        os._exit(1)
    leave_the_daemon_alone()
    leave_no_core()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    sock.sendall(answer(sock))
    os._exit(0)  # Without the ends of libraries: the kernel takes everything back.
