# SPDX-License-Identifier: GPL-3.0-only
"""Host an engine in a thread of this process."""

from __future__ import annotations

from functools import partial

import trio

from modeld.engine.load import load_engine
from modeld.engine.protocol import LoadSpec
from modeld.errors import Problem
from modeld.worker.engine_loop import Inbox, run_engine
from modeld.worker.host import OnMessage
from modeld.worker.messages import Close, FromWorker, ToWorker, WorkerDied, WorkerLoadFailed, WorkerStopped
from modeld.worker.thread_outbox import ThreadOutbox


class ThreadWorker:
    """Runs `run_engine` by `trio.to_thread`; messages come back once a step at most, by `run_sync_soon`.

    It has no process and no memory of its own to tell of, and cannot be killed.
    """

    pid: int | None = None
    measured: int | None = None

    def __init__(self, load: LoadSpec, on_message: OnMessage) -> None:
        self._load = load
        self._on_message = on_message
        self._inbox = Inbox()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Run until the last message was delivered.

        Cancellation: asks the thread to stop and waits for it. That wait is as long as one step,
        which `stop` interrupts, or as the rest of a load's current tensor.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_thread)
            try:
                await self._ended.wait()
            finally:
                self.stop()

    def send(self, message: ToWorker) -> None:
        """Post a message to the thread."""
        self._inbox.put(message)

    def stop(self) -> None:
        """Make the thread end soon."""
        self._inbox.put(Close())

    def kill(self, _problem: Problem, /) -> bool:
        """Say that a thread cannot be killed."""
        return False

    def pulse(self) -> None:
        """Return nothing: what one thread does cannot be told apart."""

    async def _run_thread(self) -> None:
        post = ThreadOutbox(trio.lowlevel.current_trio_token().run_sync_soon, self._deliver).put
        await trio.to_thread.run_sync(
            run_engine,
            partial(load_engine, self._load),
            self._inbox,
            post,
            thread_name=f"modeld {self._load.model_id}",
            abandon_on_cancel=False,
            limiter=trio.CapacityLimiter(1),
        )

    def _deliver(self, message: FromWorker) -> None:
        if isinstance(message, WorkerStopped | WorkerLoadFailed | WorkerDied):
            self._ended.set()
        self._on_message(message)
