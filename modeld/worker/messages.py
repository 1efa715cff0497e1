# SPDX-License-Identifier: GPL-3.0-only
"""What the daemon and a worker say to each other, both directions.

    to the worker     (Start)  Submit  Cancel  SetThreads  Close
    from the worker   Progress  (Ready Step*)  Stopped | LoadFailed | Died

A worker holds one engine. `Progress* Ready Step* Stopped` is a good life; `LoadFailed` ends one
that never became ready, `Died` one whose engine broke. Exactly one of the three comes last.
`Start` is the first word to a child process; a thread is given what is in it when it is made. The process of
a dry run (`worker.probe`) is told `Start`, too, and answers once, by a `DryRunReply` in JSON.
"""

from __future__ import annotations

import os

import msgspec
from msgspec.structs import replace

from modeld.core.models import DryRun
from modeld.core.request import Request
from modeld.engine.protocol import EngineInfo, LoadSpec, Output
from modeld.errors import Problem


class Start(msgspec.Struct, frozen=True, tag="start"):
    """What to load. `path` is that of `load` as bytes: a path need not be UTF-8, a message must be."""

    load: LoadSpec
    path: bytes
    log_level: int
    """Lines below it are not written (a number of `logging`)."""


def start_of(load: LoadSpec, log_level: int) -> Start:
    """Return the message that has a process load this, whatever bytes its path has."""
    path = os.fsencode(load.path)
    return Start(replace(load, path=path.decode("utf-8", "replace")), path, log_level)


def load_of(start: Start) -> LoadSpec:
    """Return what `start_of` was given."""
    return replace(start.load, path=os.fsdecode(start.path))


class DryRunReply(msgspec.Struct, frozen=True, kw_only=True):
    """What a dry run found, or what was wrong; one of the two."""

    run: DryRun | None = None
    problem: Problem | None = None


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Serve this request; answered in `Step`s."""

    id: int
    request: Request


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """End this request. `urgent` also interrupts a running decode (it may be a long prefill)."""

    id: int
    urgent: bool = False


class SetThreads(msgspec.Struct, frozen=True, tag="set_threads"):
    """Use so many CPU threads from the next step on."""

    threads: int


class Close(msgspec.Struct, frozen=True, tag="close"):
    """Stop: give up a load, drop what is in the slots, free the model, answer `Stopped`."""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """The load has come this far, in [0, 1]."""

    fraction: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded.

    `held` is the resident set of its process at this moment, bytes; 0 where that is not told.
    """

    info: EngineInfo
    held: int = 0


class Held(msgspec.Struct, frozen=True, tag="held"):
    """The process of the worker holds so many bytes now. Its host tells this, and it is no sign of life."""

    bytes: int


class Step(msgspec.Struct, frozen=True, tag="step"):
    """What one step of the engine brought, for all slots; or several, when the event loop is behind.

    `seconds` is how long it took. A step without outputs is sent too, as a sign of life.
    """

    outputs: tuple[Output, ...]
    seconds: float


class Stopped(msgspec.Struct, frozen=True, tag="stopped"):
    """The engine is closed and its memory given back."""


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model could not be loaded."""

    problem: Problem


class Died(msgspec.Struct, frozen=True, tag="died"):
    """The engine broke after it was ready; what it held is lost."""

    problem: Problem


ToWorker = Submit | Cancel | SetThreads | Close
FromWorker = Progress | Ready | Held | Step | Stopped | LoadFailed | Died
