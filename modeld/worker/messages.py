# SPDX-License-Identifier: GPL-3.0-only
"""Messages between the daemon and a worker, in both directions.

    to the worker     (Start)  SubmitRequest  CancelRequest  SetThreads  Close
    from the worker   Progress  (WorkerReady StepDone*)  WorkerStopped | WorkerLoadFailed | WorkerDied

A worker holds one engine. `Progress* WorkerReady StepDone* WorkerStopped` is a good life; `WorkerLoadFailed`
ends one that never became ready, `WorkerDied` one whose engine broke. Exactly one of the three comes last.
`Start` is the first word to a child process; a thread is given what is in it when it is made. The process of
a dry run (`worker.oneshot`) is told `Start`, too, and answers once, by a `DryRunReply` in JSON.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

import msgspec
from msgspec.structs import replace

from modeld.domain.model import DryRun
from modeld.domain.request import Request
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


class SubmitRequest(msgspec.Struct, frozen=True, tag="submit"):
    """Serve this request; answered in `StepDone`s."""

    id: int
    request: Request


class CancelRequest(msgspec.Struct, frozen=True, tag="cancel"):
    """End this request. `urgent` also interrupts a running decode (it may be a long prefill)."""

    id: int
    urgent: bool = False


class SetThreads(msgspec.Struct, frozen=True, tag="set_threads"):
    """Use so many CPU threads from the next step on."""

    threads: int


class Close(msgspec.Struct, frozen=True, tag="close"):
    """Stop: give up a load, drop what is in the slots, free the model, answer `WorkerStopped`."""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """The load has come this far, in [0, 1]."""

    fraction: float


class WorkerReady(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded.

    `held` is the resident set of its process at this moment, bytes; 0 where that is not told.
    """

    info: EngineInfo
    held: int = 0


class MemoryHeld(msgspec.Struct, frozen=True, tag="held"):
    """The process of the worker holds so many bytes now. Its host tells this, and it is no sign of life."""

    bytes: int


class StepDone(msgspec.Struct, frozen=True, tag="step"):
    """What one step of the engine brought, for all slots; or several, when the event loop is behind.

    `seconds` is how long it took. A step without outputs is sent too, as a sign of life.
    """

    outputs: tuple[Output, ...]
    seconds: float


class WorkerStopped(msgspec.Struct, frozen=True, tag="stopped"):
    """The engine is closed and its memory given back."""


class WorkerLoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model could not be loaded."""

    problem: Problem


class WorkerDied(msgspec.Struct, frozen=True, tag="died"):
    """The engine broke after it was ready; what it held is lost."""

    problem: Problem


ToWorker = SubmitRequest | CancelRequest | SetThreads | Close
FromWorker = Progress | WorkerReady | MemoryHeld | StepDone | WorkerStopped | WorkerLoadFailed | WorkerDied


# ----------------------------------------------------------------------
# Messages as bytes, between the daemon and a worker process: a length, and msgpack of that length.
#
# Decoding checks every type against `worker.messages`, so that nothing but a message comes out. What
# does not decode is a `FrameError`: the stream behind it cannot be trusted any more, and its worker is
# ended. A step of eight tokens takes 0.9 us to write and 1.7 us to read (405 bytes).

LENGTH = struct.Struct(">I")
MOST_FROM_WORKER = 256 * 1024 * 1024
"""Bytes of a message of a worker. A step of 64 slots with 20 log-probabilities each has some 60 KiB, the
tokens of a text, with their pieces, some 10 bytes for each of its bytes."""
MOST_TO_WORKER = 1024 * 1024 * 1024
"""Bytes of a message to a worker: as large as `max_body_bytes` may be made."""

_Message = TypeVar("_Message")
_encoder = msgspec.msgpack.Encoder()
_from_worker = msgspec.msgpack.Decoder[FromWorker](FromWorker)
_to_worker = msgspec.msgpack.Decoder[Start | ToWorker](Start | ToWorker)


class FrameError(Exception):
    """What came is no message; the text says what is wrong with it."""


def encode(message: FromWorker | ToWorker | Start) -> bytearray:
    """Return a message as one frame. Text that is not Unicode (half a surrogate pair) gets question marks."""
    frame = bytearray(LENGTH.size)
    try:
        _encoder.encode_into(message, frame, LENGTH.size)
    except UnicodeEncodeError:
        _encoder.encode_into(
            _in_unicode(msgspec.to_builtins(message, builtin_types=(bytes,))), frame, LENGTH.size
        )
    LENGTH.pack_into(frame, 0, len(frame) - LENGTH.size)
    return frame


def _in_unicode(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            pairs = cast("dict[str, object]", value).items()
            return {key: _in_unicode(each) for key, each in pairs}
        case list() | tuple():
            return [_in_unicode(each) for each in cast("list[object]", value)]
        case _:
            return value


class Frames(Generic[_Message]):
    """Cuts a stream of bytes into messages. Holds at most one unfinished frame."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[_Message], most: int) -> None:
        self._decoder = decoder
        self._most = most
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[_Message]:
        """Take in bytes and yield the messages that are whole now.

        Raises: FrameError for a length out of bounds or a body that is no message; whatever was
        whole before it has been yielded by then.
        """
        buffer = self._buffer
        buffer += data
        begin = 0
        try:
            while len(buffer) - begin >= LENGTH.size:
                (length,) = LENGTH.unpack_from(buffer, begin)
                if not 0 < length <= self._most:
                    raise FrameError(f"a message of {length} bytes (the most is {self._most})")
                end = begin + LENGTH.size + length
                if len(buffer) < end:
                    break
                body = bytes(buffer[begin + LENGTH.size : end])
                begin = end
                yield self._decode(body)
        finally:
            del buffer[:begin]

    @property
    def unfinished(self) -> int:
        """Bytes of a message that has not come to its end."""
        return len(self._buffer)

    def _decode(self, body: bytes) -> _Message:
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise FrameError(f"{len(body)} bytes that are no message: {error}") from None


def frames_from_worker() -> Frames[FromWorker]:
    """Return the daemon's side of the reading."""
    return Frames(_from_worker, MOST_FROM_WORKER)


def frames_to_worker() -> Frames[Start | ToWorker]:
    """Return the child's side of the reading."""
    return Frames(_to_worker, MOST_TO_WORKER)


# ----------------------------------------------------------------------
# How a worker process marks the level of a line on standard error: `<4>text`, as sd-daemon(3) has it.

_MARK = re.compile(rb"<([3-7])>")
_LEVELS = {3: logging.ERROR, 4: logging.WARNING, 5: logging.INFO, 6: logging.INFO, 7: logging.DEBUG}


def mark(level: int) -> str:
    """Return the mark of a line of this level (a number of `logging`)."""
    if level >= logging.ERROR:
        return "<3>"
    if level >= logging.WARNING:
        return "<4>"
    return "<6>" if level >= logging.INFO else "<7>"


def split_mark(line: bytes) -> tuple[int | None, bytes]:
    """Return the level that a line is marked with and the rest of it; None for a line without a mark."""
    found = _MARK.match(line)
    return (_LEVELS[int(found[1])], line[found.end() :]) if found else (None, line)
