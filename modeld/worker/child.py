# SPDX-License-Identifier: GPL-3.0-only
"""A worker process: `python -m modeld.worker.child FD DAEMON MODEL`, started by `worker.process` alone.

The main thread runs the loop that a thread host runs (`worker.drive`). A second one reads the socket: a
cancel reaches a decode in progress at once, and the end of the stream, which is the daemon's own
end, ends the process whatever it is doing. MODEL is only there to be seen by `ps`.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from typing import NoReturn

from msgspec.structs import replace

from modeld.engine.load import load_engine
from modeld.worker.codec import FrameError, Frames, encode, frames_to_worker
from modeld.worker.drive import Inbox, drive
from modeld.worker.log_marks import mark
from modeld.worker.messages import FromWorker, Start, ToWorker

OOM_SCORE_ADJ = 500
"""Where memory runs out, the kernel takes a worker before the daemon (proc_pid_oom_score_adj(5))."""
_RECEIVE_BYTES = 65536
_PR_SET_PDEATHSIG = 1
LOST = 3
"""Exit code of a worker that lost its daemon, or could not understand it."""


def main(arguments: list[str]) -> NoReturn:
    """Serve one model until the daemon says `Close`, or is gone."""
    descriptor, daemon = int(arguments[0]), int(arguments[1])
    _die_with(daemon)
    _leave_the_daemon_alone()
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    frames = frames_to_worker()
    start, early = _first_message(sock, frames)
    _log_to_stderr(start.log_level)
    inbox = Inbox()
    for message in early:
        inbox.put(message)
    threading.Thread(target=_listen, args=(sock, frames, inbox), name="modeld inbox", daemon=True).start()
    load = replace(start.load, path=os.fsdecode(start.path))
    drive(partial(load_engine, load), inbox, partial(_post, sock))
    _leave(0)


def _die_with(daemon: int) -> None:
    """Let the kernel kill this process when the daemon's main thread ends, also while it is stopped."""
    if daemon and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != daemon:  # It ended before that.
            _leave(LOST)


def _leave_the_daemon_alone() -> None:
    """Be the first to go where memory is short, leave no core file of a model's size, and ignore SIGTERM.

    A stop is the daemon's to decide: whoever signals a whole group (a service manager, a shell)
    would end streams that it still drains.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ), encoding="ascii")
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        # 1 where that is allowed: the kernel starts a collector of core dumps for 0, and not for 1.
        resource.setrlimit(resource.RLIMIT_CORE, (hard if hard == 0 else 1, hard))
    faulthandler.enable()


class _Stderr(logging.Handler):
    """Writes each line with the mark of its level, straight to the descriptor."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = mark(record.levelno)
        lines = self.format(record).splitlines() or [""]
        text = "".join(f"{prefix}{line}\n" for line in lines)
        with contextlib.suppress(OSError):
            os.write(2, text.encode("utf-8", "backslashreplace"))


def _log_to_stderr(level: int) -> None:
    """Log from `level` on, but warnings in any case: a report of a death repeats the last ones."""
    root = logging.getLogger()
    root.handlers[:] = [_Stderr()]
    root.setLevel(min(level, logging.WARNING))


def _first_message(sock: socket.socket, frames: Frames[Start | ToWorker]) -> tuple[Start, list[ToWorker]]:
    messages: list[Start | ToWorker] = []
    while not messages:
        messages += frames.feed(_receive(sock))
    start, *early = messages
    if not isinstance(start, Start):
        _leave(LOST)
    return start, [message for message in early if not isinstance(message, Start)]


def _listen(sock: socket.socket, frames: Frames[Start | ToWorker], inbox: Inbox) -> None:
    try:
        while True:
            for message in frames.feed(_receive(sock)):
                if not isinstance(message, Start):
                    inbox.put(message)
    except FrameError as error:
        _log_line(f"the daemon sent {error}")
    _leave(LOST)


def _receive(sock: socket.socket) -> bytes:
    """Return what the daemon sent; leave when it is gone."""
    try:
        data = sock.recv(_RECEIVE_BYTES)
    except OSError:
        data = b""
    if not data:
        _leave(LOST)
    return data


def _post(sock: socket.socket, message: FromWorker) -> None:
    """Send a message, in one write; leave when nobody is there to take it."""
    try:
        sock.sendall(encode(message))
    except OSError:
        _leave(LOST)


def _log_line(text: str) -> None:
    logging.getLogger("modeld.worker").error("%s", text)


def _leave(code: int) -> NoReturn:
    """End now, without the ends of libraries: the kernel takes everything back."""
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
