# SPDX-License-Identifier: GPL-3.0-only
"""The synchronous loop of a worker: inbox -> engine.step() -> outbox, on its own thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from modeld.engine.protocol import Engine, LoadAborted, OnProgress
from modeld.errors import EngineFailed, ModeldError, ModelFailed
from modeld.worker.messages import (
    CancelRequest,
    Close,
    FromWorker,
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

_log = logging.getLogger("modeld.worker")
_PROGRESS_STEP = 0.01
"""A load reports each hundredth of its way once."""


class Inbox:
    """Messages for a worker, and the means to reach it while its engine is busy. Thread-safe."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[ToWorker] = SimpleQueue()
        self._engine: Engine | None = None
        self.closing = False

    def put(self, message: ToWorker) -> None:
        """Add a message; `Close`, and a `CancelRequest` that is urgent, also interrupt the engine."""
        if isinstance(message, Close):
            self.closing = True
        self._queue.put(message)
        engine = self._engine
        urgent = isinstance(message, Close) or (isinstance(message, CancelRequest) and message.urgent)
        if urgent and engine is not None:
            engine.interrupt()

    def attach(self, engine: Engine | None) -> None:
        """Say which engine to interrupt; None when it is about to be closed."""
        self._engine = engine

    def take(self, *, wait: bool) -> list[ToWorker]:
        """Return what has arrived; with `wait`, at least one message."""
        messages = [self._queue.get()] if wait else []
        while True:
            try:
                messages.append(self._queue.get_nowait())
            except Empty:
                return messages


def run_engine(
    load: Callable[[OnProgress], Engine], inbox: Inbox, post: Callable[[FromWorker], None]
) -> None:
    """Load an engine and serve until `Close`. Posts the messages of `worker.messages`; never raises.

    Whatever an engine raises ends this worker with `WorkerLoadFailed` or `WorkerDied`, and nothing else.
    """
    reported = -1.0

    def on_progress(fraction: float) -> bool:
        nonlocal reported
        if fraction - reported >= _PROGRESS_STEP or fraction >= 1.0 > reported:
            reported = fraction
            post(Progress(fraction))
        return not inbox.closing

    try:
        engine = load(on_progress)
    except LoadAborted:
        post(WorkerStopped())
        return
    except ModeldError as error:
        post(WorkerLoadFailed(error.as_problem()))
        return
    except Exception as error:  # noqa: BLE001  # the wall: told as `WorkerLoadFailed`, with the traceback in the log
        _log.exception("the load failed")
        post(WorkerLoadFailed(ModelFailed(f"the load failed: {error!r}").as_problem()))
        return
    last: FromWorker = WorkerStopped()
    try:
        inbox.attach(engine)
        post(WorkerReady(engine.info))
        _serve(engine, inbox, post)
    except ModeldError as error:
        last = WorkerDied(error.as_problem())
    except Exception as error:  # noqa: BLE001  # the wall: told as `WorkerDied`, with the traceback in the log
        _log.exception("the engine broke")
        last = WorkerDied(EngineFailed(f"the engine broke: {error!r}").as_problem())
    finally:
        inbox.attach(None)
        engine.close()
    post(last)


def _serve(engine: Engine, inbox: Inbox, post: Callable[[FromWorker], None]) -> None:
    while True:
        for message in inbox.take(wait=not engine.busy):
            match message:
                case SubmitRequest(id=request_id, request=request):
                    engine.submit(request_id, request)
                case CancelRequest(id=request_id):
                    engine.cancel(request_id)
                case SetThreads(threads=threads):
                    engine.set_threads(threads)
                case Close():
                    return
        if engine.busy:
            began = time.perf_counter()
            outputs = engine.step()
            post(StepDone(tuple(outputs), time.perf_counter() - began))
