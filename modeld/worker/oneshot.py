# SPDX-License-Identifier: GPL-3.0-only
"""Run a process that answers once within a deadline.

What it does may end it, fill its memory or keep it busy for ever, so nothing here relies on it: the answer
is what it wrote until it closed its end, and whoever asked judges that. `oneshot_child` is its side.
"""

from __future__ import annotations

import logging
import os
from collections import deque

import msgspec
import trio

from modeld.domain.model import DryRun
from modeld.engine.protocol import LoadSpec
from modeld.errors import ModelFailed, Problem
from modeld.telemetry.log import get_logger
from modeld.worker.messages import DryRunReply, encode, start_of
from modeld.worker.spawn import CHUNK, GONE_S, Spawned, spawn, wait_until_gone

MOST_BYTES = 1 << 20
_WORDS = 3

_log = get_logger("modeld.worker")


class OneshotResult(msgspec.Struct, frozen=True, kw_only=True):
    """What such a process left behind."""

    reply: bytes
    in_time: bool
    code: int | None
    stderr: tuple[str, ...]
    """The last lines that it wrote: C's own, when an assertion ended it."""

    @property
    def end(self) -> str:
        """How it ended, as part of a sentence."""
        said = f"; its last words: {'; '.join(self.stderr)}" if self.stderr else ""
        return f"its process ended with {self.code}{said}"


async def run_oneshot(name: str, module: str, frame: bytes | bytearray, within_s: float) -> OneshotResult:
    """Start `python -m module FD DAEMON NAME`, write `frame` to it and read its answer.

    Raises: OSError when no process can be started.
    Cancellation: kills it, and waits until it is gone, `GONE_S` at most.
    """
    await trio.lowlevel.checkpoint()
    child = spawn(name, module)
    reply, words = bytearray(), deque[str](maxlen=_WORDS)
    try:
        with trio.move_on_after(within_s) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_collect, child.log_fd, words)
                await _talk(child, bytearray(frame), reply)
                await wait_until_gone(child.process)
                nursery.cancel_scope.cancel()
    finally:
        child.process.kill()
        with trio.move_on_after(GONE_S, shield=True):
            await wait_until_gone(child.process)
        if child.process.returncode is None:
            _log.error("a killed process is not gone", module=module, about=name, pid=child.process.pid)
        child.close()
    return OneshotResult(
        reply=bytes(reply),
        in_time=not patience.cancelled_caught,
        code=child.process.returncode,
        stderr=tuple(words),
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


# ----------------------------------------------------------------------
# Asks llama.cpp what a model will take, in a process of its own (`worker.dry_run_child`).
#
# A bad file can end that process, fill its memory or keep it busy for ever; so it is bounded like no worker:
# 2 GiB of memory, 10 s of CPU time, no file to write, and `WITHIN_S` until it is killed. It is told
# what a worker is told (`Start`), and answers with one JSON value, a `DryRunReply`.

WITHIN_S = 5.0
"""Seconds after which a probe is given up. A usual one takes one, most of it Python's own start."""

Answer = DryRun | Problem


async def run_dry_run(load: LoadSpec, within_s: float = WITHIN_S) -> Answer:
    """Ask a child process what a model takes. Never raises for what is in the file.

    Returns: what llama.cpp says, or the problem: with the file, or that there was no answer in time.
    Cancellation: kills the child, and waits until it is gone.
    """
    await trio.lowlevel.checkpoint()
    frame = encode(start_of(load, logging.WARNING))
    try:
        said = await run_oneshot(load.model_id, "modeld.worker.dry_run_child", frame, within_s)
    except OSError as error:
        return _failed(load, f"no process could be started: {error.strerror or error}")
    if not said.in_time:
        text = f"a dry run of {load.model_id} did not end within {within_s:g} s"
        return ModelFailed(text, details={"within_s": within_s}).as_problem()
    try:
        answer = msgspec.json.decode(said.reply, type=DryRunReply)
    except msgspec.DecodeError:
        return _failed(load, said.end)
    return answer.run or answer.problem or _failed(load, "it said nothing")


def _failed(load: LoadSpec, why: str) -> Problem:
    text = f"a dry run of {load.model_id} failed: {why}"
    return ModelFailed(text).as_problem()
