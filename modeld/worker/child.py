# SPDX-License-Identifier: GPL-3.0-only
"""The worker process: `python -m modeld.worker.child FD DAEMON MODEL`.

The main thread runs the loop that a thread host runs (`worker.engine_loop`). A second one reads the socket: a
cancel reaches a decode in progress at once, and the end of the stream, which is the daemon's own
end, ends the process whatever it is doing. MODEL is only there to be seen by `ps`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from functools import partial
from typing import NoReturn

from msgspec.structs import replace

from modeld.engine.load import load_engine
from modeld.worker.engine_loop import Inbox, run_engine
from modeld.worker.messages import (
    FrameError,
    Frames,
    FromWorker,
    Start,
    ToWorker,
    WorkerReady,
    encode,
    frames_to_worker,
    load_of,
    mark,
)
from modeld.worker.process_stats import own_bytes
from modeld.worker.sandbox import become_oom_victim, die_with_parent, disable_core_dumps

_RECEIVE_BYTES = 65536
LOST = 3
"""Exit code of a worker that lost its daemon, or could not understand it."""


def main(arguments: list[str]) -> NoReturn:
    """Serve one model until the daemon says `Close`, or is gone."""
    descriptor, daemon = int(arguments[0]), int(arguments[1])
    if not die_with_parent(daemon):
        _leave(LOST)
    become_oom_victim()
    disable_core_dumps()
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    frames = frames_to_worker()
    start, early = _first_message(sock, frames)
    _log_to_stderr(start.log_level)
    inbox = Inbox()
    for message in early:
        inbox.put(message)
    threading.Thread(target=_listen, args=(sock, frames, inbox), name="modeld inbox", daemon=True).start()
    run_engine(partial(load_engine, load_of(start)), inbox, partial(_post, sock))
    _leave(0)


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
    if isinstance(message, WorkerReady):
        message = replace(message, held=own_bytes())
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
