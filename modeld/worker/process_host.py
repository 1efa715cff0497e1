# SPDX-License-Identifier: GPL-3.0-only
"""Host an engine in a child process, which may die or be killed without harm.

A worker that ended, however it ended, is reported only when the kernel has said that the process is
gone: then its memory is free. Killing it is the one hard cancel, and needs no cooperation.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress

import trio

from modeld.engine.protocol import LoadSpec
from modeld.errors import EngineFailed, ModelFailed, Problem
from modeld.telemetry.log import get_logger
from modeld.worker.child_log import ChildLog
from modeld.worker.host import OnMessage
from modeld.worker.messages import (
    Close,
    FrameError,
    FromWorker,
    MemoryHeld,
    StepDone,
    ToWorker,
    WorkerDied,
    WorkerLoadFailed,
    WorkerReady,
    WorkerStopped,
    encode,
    frames_from_worker,
    start_of,
)
from modeld.worker.process_stats import Pulse, held_bytes, pulse_of
from modeld.worker.spawn import CHUNK, GONE_S, Spawned, spawn, wait_until_gone
from modeld.worker.thread_outbox import merged

CLOSE_S = 5.0
"""A worker that was told to stop has so long, then it is killed."""
EXIT_S = 1.0
"""One whose socket is closed has so long to be gone."""
MEASURE_S = 15.0
"""Between two looks at the memory of a worker that works."""
_LOG_END_S = 0.2
_FLOOD_PAUSE_S = 0.005
_HINTS = {
    signal.SIGKILL: "by hand, or by the kernel because memory was short",
    signal.SIGILL: "llama.cpp was built for another CPU",
    signal.SIGBUS: "its file was cut short while it was mapped, or the disk failed",
}

_log = get_logger("modeld.worker")


class ProcessWorker:
    """Keeps the contract of `worker.host.Worker` with a process of its own.

    Attributes:
      pid: of the process, None while there is none.
      measured: bytes it held when that was last looked at, None while unknown.
    """

    def __init__(self, load: LoadSpec, on_message: OnMessage) -> None:
        self.pid: int | None = None
        self.measured: int | None = None
        self._load = load
        self._on_message = on_message
        self._child: Spawned | None = None
        self._outbox = bytearray()
        self._unsent = trio.Event()
        self._stopping = trio.Event()
        self._ready = trio.Event()
        self._log_ended = trio.Event()
        self._steps = 0
        self._last: WorkerStopped | WorkerLoadFailed | WorkerDied | None = None
        self._killed_for: Problem | None = None

    async def run(self) -> None:
        """Run until the process is gone and its last message was delivered.

        Cancellation: the process is killed and waited for.
        """
        await trio.lowlevel.checkpoint()
        try:
            child = spawn(self._load.model_id)
        except OSError as error:
            text = f"no process could be started for model {self._load.model_id}: {error.strerror or error}"
            self._on_message(WorkerLoadFailed(ModelFailed(text).as_problem()))
            return
        self._child, self.pid = child, child.process.pid
        log = ChildLog(self._load.model_id, child.process.pid)
        self._send_first(child)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_log, child, log)
                nursery.start_soon(self._write, child)
                nursery.start_soon(self._kill_when_stop_takes_long)
                nursery.start_soon(self._measure, child.process.pid)
                await self._listen(child)
                await self._reap(child)
                nursery.cancel_scope.cancel()
        finally:
            self._kill()
            with trio.move_on_after(GONE_S, shield=True):
                await wait_until_gone(child.process)
            if child.process.returncode is None:
                _log.error("a killed worker is not gone", model=self._load.model_id, pid=self.pid)
            child.close()
            self._child = None
        self._on_message(self._last_message(child.process.returncode, log))

    def send(self, message: ToWorker) -> None:
        """Post a message: at once if the socket takes it, else as soon as it does."""
        if self._child is None and self.pid is not None:
            return
        frame = encode(message)
        if self._child is None or self._outbox:
            self._outbox += frame
            return
        try:
            sent = self._child.sock.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:  # It is gone, which `_listen` sees too.
            return
        if sent < len(frame):
            self._outbox += frame[sent:]
            self._unsent.set()

    def stop(self) -> None:
        """Ask it to stop; it is killed if that takes longer than `CLOSE_S`."""
        if not self._stopping.is_set():
            self._stopping.set()
            self.send(Close())

    def kill(self, problem: Problem, /) -> bool:
        """Kill the process; the worker ends by `WorkerDied` with this problem."""
        if self._killed_for is None:
            self._killed_for = problem
        self._kill()
        return True

    def pulse(self) -> Pulse | None:
        """Return numbers that change while the process computes or reads."""
        return None if self.pid is None else pulse_of(self.pid)

    def _send_first(self, child: Spawned) -> None:
        level = logging.getLogger("modeld.worker").getEffectiveLevel()
        self._outbox[:0] = encode(start_of(self._load, level))
        self._unsent.set()
        with suppress(OSError):
            del self._outbox[: child.sock.send(self._outbox)]

    async def _listen(self, child: Spawned) -> None:
        """Deliver messages until the socket ends, or brings something that is no message."""
        frames = frames_from_worker()
        while data := await child.receive():
            heard: list[FromWorker] = []
            fault: FrameError | None = None
            try:
                for message in frames.feed(data):
                    heard.append(message)  # noqa: PERF402  # what came before a fault counts, and `extend` does not promise to keep it
            except FrameError as error:
                fault = error
            for message in merged(heard):
                self._take(message)
            if fault is not None:
                text = f"the worker process of model {self._load.model_id} sent {fault}, and was killed"
                self.kill(EngineFailed(text).as_problem())
                return

    def _take(self, message: FromWorker) -> None:
        match message:
            case WorkerStopped() | WorkerLoadFailed() | WorkerDied():
                self._last = message  # Delivered when the process is gone.
                return
            case WorkerReady():
                self._ready.set()
            case StepDone():
                self._steps += 1
            case _:
                pass
        self._on_message(message)

    async def _write(self, child: Spawned) -> None:
        """Send what the socket did not take at once."""
        while True:
            await self._unsent.wait()
            while self._outbox:
                await trio.lowlevel.wait_writable(child.sock)
                try:
                    sent = child.sock.send(self._outbox)
                except BlockingIOError:
                    continue
                except OSError:
                    return
                del self._outbox[:sent]
            self._unsent = trio.Event()

    async def _read_log(self, child: Spawned, log: ChildLog) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(child.log_fd)
                try:
                    data = os.read(child.log_fd, CHUNK)
                except BlockingIOError:
                    continue
                if not data:
                    return
                dropped = log.dropped
                log.feed(data, trio.current_time())
                if log.dropped > dropped:
                    await trio.sleep(_FLOOD_PAUSE_S)
        finally:
            log.end(trio.current_time())
            self._log_ended.set()

    async def _kill_when_stop_takes_long(self) -> None:
        await self._stopping.wait()
        await trio.sleep(CLOSE_S)
        _log.warning(
            "killed, it did not stop in time", model=self._load.model_id, pid=self.pid, after_s=CLOSE_S
        )
        self._kill()

    async def _measure(self, pid: int) -> None:
        await self._ready.wait()
        seen = -1
        while True:
            if seen != self._steps:
                seen = self._steps
                self.measured = await trio.to_thread.run_sync(held_bytes, pid, abandon_on_cancel=True)
                if self.measured is not None:
                    self._on_message(MemoryHeld(self.measured))
            await trio.sleep(MEASURE_S)

    async def _reap(self, child: Spawned) -> None:
        """Wait for the end of the process; what is not gone soon after its socket is killed."""
        with trio.move_on_after(EXIT_S):
            await wait_until_gone(child.process)
        self._kill()
        await wait_until_gone(child.process)
        with trio.move_on_after(_LOG_END_S):
            await self._log_ended.wait()

    def _kill(self) -> None:
        """Kill the process if it is still there; never another one of the same number."""
        if self._child is not None:
            self._child.process.kill()

    def _last_message(self, code: int | None, log: ChildLog) -> WorkerStopped | WorkerLoadFailed | WorkerDied:
        """Return how it ended. One that was to stop has stopped, whatever it died of on the way."""
        if self._last is not None and self._killed_for is None:
            return self._last
        if self._killed_for is None:
            problem = EngineFailed(self._death_report(code, log)).as_problem()
        else:
            problem = self._killed_for
        if not self._stopping.is_set():
            return WorkerDied(problem)
        _log.warning(
            "a worker died while it stopped", model=self._load.model_id, pid=self.pid, why=problem.message
        )
        return WorkerStopped()

    def _death_report(self, code: int | None, log: ChildLog) -> str:
        what = f"the worker process of model {self._load.model_id} (pid {self.pid})"
        doing = "served" if self._ready.is_set() else "loaded it"
        words = log.last_words(trio.current_time())
        tail = f"; its last words: {words}" if words else ""
        return f"{what} {_cause(code)} while it {doing}{tail}"


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exited with {code}"
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"was killed by signal {-code}"
    hint = _HINTS.get(number)
    told = signal.strsignal(number)
    return f"was killed by {number.name} ({hint or told})"
