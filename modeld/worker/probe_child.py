# SPDX-License-Identifier: GPL-3.0-only
"""The process that makes a dry run, and ends: `python -m modeld.worker.probe_child FD DAEMON MODEL`.

Started by `worker.probe` alone. What it holds itself is taken for what a worker holds beside its model, so it
imports what a worker imports, and nothing that the daemon alone needs.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
from pathlib import Path

import msgspec

from modeld.engine.llama.dry_run import dry_run
from modeld.engine.llama.gguf import GgufError, read_facts
from modeld.engine.protocol import LoadSpec
from modeld.errors import ModeldError, ModelFailed
from modeld.worker.bounds import bound
from modeld.worker.codec import frames_to_worker
from modeld.worker.messages import DryRunReply, Start, load_of
from modeld.worker.once_child import answer_once
from modeld.worker.vitals import own_bytes

MEMORY_BYTES = 2 << 30
CPU_S = 10
_CHUNK = 65536


def _reply(sock: socket.socket) -> bytes:
    """Answer once."""
    start = _first_message(sock)
    logging.basicConfig(level=logging.ERROR)
    bound(memory=MEMORY_BYTES, cpu_s=CPU_S)
    return msgspec.json.encode(_answer(load_of(start)))


def _first_message(sock: socket.socket) -> Start:
    frames = frames_to_worker()
    while data := sock.recv(_CHUNK):
        for message in frames.feed(data):
            if isinstance(message, Start):
                return message
    os._exit(1)


def _answer(load: LoadSpec) -> DryRunReply:
    for name in ("modeld.worker.child", "modeld.engine.llama.engine"):
        importlib.import_module(name)  # All that a worker has in memory is to be counted.
    try:
        facts = read_facts(Path(load.path)) if load.facts is None else load.facts
        return DryRunReply(run=dry_run(load, facts, own_bytes))
    except ModeldError as error:
        return DryRunReply(problem=error.as_problem())
    except (GgufError, OSError) as error:
        return DryRunReply(problem=ModelFailed(f"{load.model_id} cannot be read: {error}").as_problem())
    except MemoryError:
        text = f"{load.model_id} needs more than {MEMORY_BYTES >> 20} MiB to be looked at"
        return DryRunReply(problem=ModelFailed(text).as_problem())
    except Exception as error:  # noqa: BLE001  # the wall: told as the answer of this process, which ends
        return DryRunReply(
            problem=ModelFailed(f"{load.model_id} cannot be looked at: {error!r}").as_problem()
        )


if __name__ == "__main__":
    answer_once(sys.argv[1:], _reply)
