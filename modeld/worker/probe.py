# SPDX-License-Identifier: GPL-3.0-only
"""Asks llama.cpp what a model will take, in a process of its own (`worker.probe_child`).

A bad file can end that process, fill its memory or keep it busy for ever; so it is bounded like no worker:
2 GiB of memory, 10 s of CPU time, no file to write, and `WITHIN_S` until it is killed. It is told
what a worker is told (`Start`), and answers with one JSON value, a `DryRunReply`.
"""

from __future__ import annotations

import logging

import msgspec
import trio

from modeld.core.models import DryRun
from modeld.engine.protocol import LoadSpec
from modeld.errors import ModelFailed, Problem
from modeld.worker.codec import encode
from modeld.worker.messages import DryRunReply, start_of
from modeld.worker.once import ask_once

WITHIN_S = 5.0
"""Seconds after which a probe is given up. A usual one takes one, most of it Python's own start."""

Answer = DryRun | Problem


async def probe(load: LoadSpec, within_s: float = WITHIN_S) -> Answer:
    """Ask a child process what a model takes. Never raises for what is in the file.

    Returns: what llama.cpp says, or the problem: with the file, or that there was no answer in time.
    Cancellation: kills the child, and waits until it is gone.
    """
    await trio.lowlevel.checkpoint()
    frame = encode(start_of(load, logging.WARNING))
    try:
        said = await ask_once(load.model_id, "modeld.worker.probe_child", frame, within_s)
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
