# SPDX-License-Identifier: GPL-3.0-only
"""A process that answers once: started, told what to do, listened to, and gone within its time.

What it does may end it, fill its memory or keep it busy for ever, so nothing here relies on it: the answer
is what it wrote until it closed its end, and whoever asked judges that. `once_child` is its side.
"""

from __future__ import annotations

import os
from collections import deque

import msgspec
import trio

from modeld.telemetry.log import get_logger
from modeld.worker.spawn import CHUNK, GONE_S, Spawned, gone, spawn

MOST_BYTES = 1 << 20
_WORDS = 3

_log = get_logger("modeld.worker")


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What such a process left behind."""

    reply: bytes
    in_time: bool
    code: int | None
    words: tuple[str, ...]
    """The last lines that it wrote: C's own, when an assertion ended it."""

    @property
    def end(self) -> str:
        """How it ended, as part of a sentence."""
        said = f"; its last words: {'; '.join(self.words)}" if self.words else ""
        return f"its process ended with {self.code}{said}"


async def ask_once(name: str, module: str, frame: bytes | bytearray, within_s: float) -> Said:
    """Start `python -m module FD DAEMON NAME`, write `frame` to it and read its answer.

    Raises: OSError when no process can be started.
    Cancellation: kills it, and waits until it is gone, `GONE_S` at the most.
    """
    await trio.lowlevel.checkpoint()
    child = spawn(name, module)
    reply, words = bytearray(), deque[str](maxlen=_WORDS)
    try:
        with trio.move_on_after(within_s) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_collect, child.log_fd, words)
                await _talk(child, bytearray(frame), reply)
                await gone(child.process)
                nursery.cancel_scope.cancel()
    finally:
        child.process.kill()
        with trio.move_on_after(GONE_S, shield=True):
            await gone(child.process)
        if child.process.returncode is None:
            _log.error("a killed process is not gone", module=module, about=name, pid=child.process.pid)
        child.close()
    return Said(
        reply=bytes(reply),
        in_time=not patience.cancelled_caught,
        code=child.process.returncode,
        words=tuple(words),
    )


async def _talk(child: Spawned, frame: bytearray, reply: bytearray) -> None:
    """Tell the child what to do, and take its answer until it closes its end."""
    await trio.lowlevel.checkpoint()
    while frame:
        await trio.lowlevel.wait_writable(child.sock)
        try:
            del frame[: child.sock.send(frame)]
        except BlockingIOError:
            continue
        except OSError:
            return
    while len(reply) < MOST_BYTES and (data := await child.receive()):
        reply += data


async def _collect(descriptor: int, words: deque[str]) -> None:
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            continue
        if not data:
            return
        words.extend(line for line in data.decode(errors="replace").splitlines() if line.strip())
