# SPDX-License-Identifier: GPL-3.0-only
"""A process that asks llama.cpp what a model will take, and ends.

`python -m modeld.worker.probe FD DAEMON MODEL`, started by `probe` alone. A bad file can end it, fill its
memory or keep it busy for ever; so it is bounded like no worker: `MEMORY_BYTES` of memory, `CPU_S` of CPU
time, no file to write, and `WITHIN_S` until it is killed. It is told what a worker is told (`Start`), and
answers with one JSON value: a `DryRun`, or a `Problem`.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
from pathlib import Path

import msgspec
import trio

from modeld.core.models import DryRun
from modeld.engine.protocol import LoadSpec
from modeld.errors import ModeldError, ModelFailed, Problem
from modeld.worker.bounds import bound
from modeld.worker.codec import encode, frames_to_worker
from modeld.worker.messages import Start, load_of, start_of
from modeld.worker.once import answer_once, ask_once
from modeld.worker.spawn import CHUNK
from modeld.worker.vitals import own_bytes

WITHIN_S = 5.0
"""Seconds after which a probe is given up. A usual one takes one, most of it Python's own start."""
MEMORY_BYTES = 2 << 30
CPU_S = 10

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
    frame = encode(start_of(load, logging.WARNING))
    try:
        said = await ask_once(load.model_id, "modeld.worker.probe", frame, within_s)
    except OSError as error:
        return _failed(load, f"no process could be started: {error.strerror or error}")
    if not said.in_time:
        text = f"a dry run of {load.model_id} did not end within {within_s:g} s"
        return ModelFailed(text, details={"within_s": within_s}).as_problem()
    try:
        answer = msgspec.json.decode(said.reply, type=_Reply)
    except msgspec.DecodeError:
        return _failed(load, said.end)
    return answer.run or answer.problem or _failed(load, "it said nothing")


def _failed(load: LoadSpec, why: str) -> Problem:
    text = f"a dry run of {load.model_id} failed: {why}"
    return ModelFailed(text).as_problem()


def _reply(sock: socket.socket) -> bytes:
    """Answer once, in the child."""
    start = _first_message(sock)
    logging.basicConfig(level=logging.ERROR)
    bound(memory=MEMORY_BYTES, cpu_s=CPU_S)
    return msgspec.json.encode(_answer(load_of(start)))


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
    answer_once(sys.argv[1:], _reply)
