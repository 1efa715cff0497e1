# SPDX-License-Identifier: GPL-3.0-only
"""A process that asks llama.cpp what a model will take, and ends.

`python -m modeld.worker.probe FD DAEMON MODEL`, started by `probe` alone. A bad file can end it, fill its
memory or keep it busy for ever; so it is bounded like no worker: `MEMORY_BYTES` of memory, `CPU_S` of CPU
time, no file to write, and `WITHIN_S` until it is killed. It is told what a worker is told (`Start`), and
answers with one JSON value: a `DryRun`, or a `Problem`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import sys
from collections import deque
from pathlib import Path

import msgspec
import trio

from modeld.core.models import DryRun
from modeld.engine.protocol import LoadSpec
from modeld.errors import ModeldError, ModelFailed, Problem
from modeld.worker.bounds import bound, die_with, leave_no_core, leave_the_daemon_alone
from modeld.worker.codec import encode, frames_to_worker
from modeld.worker.messages import Start, load_of, start_of
from modeld.worker.spawn import CHUNK, Spawned, gone, spawn
from modeld.worker.vitals import own_bytes

WITHIN_S = 5.0
"""Seconds after which a probe is given up. A usual one takes one, most of it Python's own start."""
MEMORY_BYTES = 2 << 30
CPU_S = 10
_MOST_BYTES = 1 << 20
_WORDS = 3
_NICE = 5

Answer = DryRun | Problem


class _Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What the child says; one of the two."""

    run: DryRun | None = None
    problem: Problem | None = None


async def probe(load: LoadSpec, within_s: float = WITHIN_S) -> Answer:
    """Ask a child process what a model takes. Never raises for what is in the file.

    Returns: what llama.cpp says, or the problem: with the file, or that there was no answer in time.
    Cancellation: kills the child, and waits until it is gone.
    """
    await trio.lowlevel.checkpoint()
    try:
        child = spawn(load.model_id, "modeld.worker.probe")
    except OSError as error:
        return _failed(load, f"no process could be started: {error.strerror or error}")
    reply, words = bytearray(), deque[str](maxlen=_WORDS)
    try:
        with trio.move_on_after(within_s) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_collect, child.log_fd, words)
                await _talk(child, load, reply)
                await gone(child.process)
                nursery.cancel_scope.cancel()
    finally:
        child.process.kill()
        with trio.CancelScope(shield=True):  # A killed process is gone at once: nothing to wait long for.
            await gone(child.process)
        child.close()
    if patience.cancelled_caught:
        text = f"a dry run of {load.model_id} did not end within {within_s:g} s"
        return ModelFailed(text, details={"within_s": within_s}).as_problem()
    try:
        answer = msgspec.json.decode(bytes(reply), type=_Reply)
    except msgspec.DecodeError:
        said = f"; its last words: {'; '.join(words)}" if words else ""
        return _failed(load, f"its process ended with {child.process.returncode}{said}")
    return answer.run or answer.problem or _failed(load, "it said nothing")


def _failed(load: LoadSpec, why: str) -> Problem:
    text = f"a dry run of {load.model_id} failed: {why}"
    return ModelFailed(text).as_problem()


async def _talk(child: Spawned, load: LoadSpec, reply: bytearray) -> None:
    """Tell the child what to load, and take its answer until it closes its end."""
    await trio.lowlevel.checkpoint()
    frame = encode(start_of(load, logging.WARNING))
    while frame:
        await trio.lowlevel.wait_writable(child.sock)
        try:
            del frame[: child.sock.send(frame)]
        except BlockingIOError:
            continue
        except OSError:
            return
    while len(reply) < _MOST_BYTES and (data := await child.receive()):
        reply += data


async def _collect(descriptor: int, words: deque[str]) -> None:
    """Keep the last lines that it writes: C's own words, when it was ended by an assertion."""
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            continue
        if not data:
            return
        words.extend(line for line in data.decode(errors="replace").splitlines() if line.strip())


def main(arguments: list[str]) -> None:
    """Answer once."""
    descriptor, daemon = int(arguments[0]), int(arguments[1])
    if not die_with(daemon):
        os._exit(1)
    leave_the_daemon_alone()
    leave_no_core()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    start = _first_message(sock)
    logging.basicConfig(level=logging.ERROR)
    bound(memory=MEMORY_BYTES, cpu_s=CPU_S)
    reply = _answer(load_of(start))
    sock.sendall(msgspec.json.encode(reply))
    os._exit(0)  # Without the ends of libraries: the kernel takes everything back.


def _first_message(sock: socket.socket) -> Start:
    frames = frames_to_worker()
    while data := sock.recv(CHUNK):
        for message in frames.feed(data):
            if isinstance(message, Start):
                return message
    os._exit(1)


def _answer(load: LoadSpec) -> _Reply:
    importlib.import_module("modeld.engine.llama.engine")  # All that a worker has in memory is to be counted.
    from modeld.engine.llama.dry_run import dry_run  # noqa: PLC0415  # loads llama.cpp, which only the child may do
    from modeld.engine.llama.gguf import GgufError, read_facts  # noqa: PLC0415  # its package imports llama.cpp

    try:
        facts = read_facts(Path(load.path)) if load.facts is None else load.facts
        return _Reply(run=dry_run(load, facts, own_bytes))
    except ModeldError as error:
        return _Reply(problem=error.as_problem())
    except (GgufError, OSError) as error:
        return _Reply(problem=ModelFailed(f"{load.model_id} cannot be read: {error}").as_problem())
    except MemoryError:
        text = f"{load.model_id} needs more than {MEMORY_BYTES >> 20} MiB to be looked at"
        return _Reply(problem=ModelFailed(text).as_problem())
    except Exception as error:  # noqa: BLE001  # the wall: whatever is wrong with a file is an answer
        return _Reply(problem=ModelFailed(f"{load.model_id} cannot be looked at: {error!r}").as_problem())


if __name__ == "__main__":
    main(sys.argv[1:])
