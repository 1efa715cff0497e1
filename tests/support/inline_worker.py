# SPDX-License-Identifier: GPL-3.0-only
"""A worker host that runs the fake engine inside the event loop, so that a mock clock rules its time.

(With a thread, trio's autojump clock would jump while the thread works: trio issue 456.)
"""

from __future__ import annotations

from collections import deque

import trio

from modeld.engine import fake
from modeld.engine.protocol import LoadSpec
from modeld.errors import ModeldError, Problem
from modeld.worker.host import OnMessage
from modeld.worker.messages import (
    CancelRequest,
    Close,
    Progress,
    SetThreads,
    StepDone,
    SubmitRequest,
    ToWorker,
    WorkerDied,
    WorkerLoadFailed,
    WorkerReady,
    WorkerStopped,
)


class InlineWorker:
    """Keeps the contract of `modeld.worker.host.Worker`; time passes by `trio.sleep`.

    `killable` is whether it acts like a process that can be killed, or like a thread that cannot.
    """

    pid = None
    measured = None
    killable = True

    def __init__(self, load: LoadSpec, on_message: OnMessage) -> None:
        self.load = load
        self.deliver = on_message
        self._inbox: deque[ToWorker] = deque()
        self._arrived = trio.Event()
        self._interrupted = trio.Event()
        self._load_scope = trio.CancelScope()
        self._owed = 0.0
        self._killed: Problem | None = None
        self._life = trio.CancelScope()

    async def run(self) -> None:
        with self._life:
            await self._live()
        if self._killed is not None:
            self.deliver(WorkerDied(self._killed))

    async def _live(self) -> None:
        timeline: list[tuple[float, float]] = []

        def on_progress(fraction: float) -> bool:
            timeline.append((self._owed, fraction))
            return True

        began = trio.current_time()
        failure: ModeldError | None = None
        engine: fake.FakeEngine | None = None
        try:
            engine = fake.load(self.load, on_progress, self._schedule_step)
        except ModeldError as error:
            failure = error
        with self._load_scope:
            for offset, fraction in timeline:
                await trio.sleep_until(began + offset)
                self.deliver(Progress(fraction))
            await trio.sleep_until(began + self._owed)
        if self._load_scope.cancelled_caught:
            self.deliver(WorkerStopped())
        elif failure is not None or engine is None:
            assert failure is not None
            self.deliver(WorkerLoadFailed(failure.as_problem()))
        else:
            self.deliver(WorkerReady(engine.info))
            await self._serve(engine)

    async def _serve(self, engine: fake.FakeEngine) -> None:
        while True:
            if not engine.busy and not self._inbox:
                self._arrived = trio.Event()
                await self._arrived.wait()
            while self._inbox:
                match self._inbox.popleft():
                    case SubmitRequest(id=request_id, request=request):
                        engine.submit(request_id, request)
                    case CancelRequest(id=request_id):
                        engine.cancel(request_id)
                    case SetThreads(threads=threads):
                        engine.set_threads(threads)
                    case Close():
                        self.deliver(WorkerStopped())
                        return
            if not engine.busy:
                continue
            self._owed = 0.0
            self._interrupted = trio.Event()
            try:
                outputs = tuple(engine.step())
            except ModeldError as error:
                self.deliver(WorkerDied(error.as_problem()))
                return
            with trio.move_on_after(self._owed):
                await self._interrupted.wait()
            await trio.lowlevel.checkpoint()
            self.deliver(StepDone(outputs, self._owed))

    def send(self, message: ToWorker) -> None:
        self._inbox.append(message)
        self._arrived.set()
        if isinstance(message, Close) or (isinstance(message, CancelRequest) and message.urgent):
            self._interrupted.set()

    def stop(self) -> None:
        self._load_scope.cancel()
        self.send(Close())

    def kill(self, problem: Problem) -> bool:
        if self.killable:
            self._killed = problem
            self._life.cancel()
        return self.killable

    def pulse(self) -> object:
        return ()

    def _schedule_step(self, seconds: float) -> None:
        self._owed += seconds
