# SPDX-License-Identifier: GPL-3.0-only
"""The loop of a worker, synchronous: inbox -> engine.step() -> outbox. Runs in a thread of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from modeld.engine.protocol import Engine, LoadAborted, OnProgress
from modeld.errors import EngineFailed, ModeldError, ModelFailed
from modeld.worker.messages import (
    Cancel,
    Close,
    Died,
    FromWorker,
    LoadFailed,
    Progress,
    Ready,
    SetThreads,
    Step,
    Stopped,
    Submit,
    ToWorker,
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
        """Add a message; `Close`, and a `Cancel` that is urgent, also interrupt the engine."""
        if isinstance(message, Close):
            self.closing = True
        self._queue.put(message)
        engine = self._engine
        urgent = isinstance(message, Close) or (isinstance(message, Cancel) and message.urgent)
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


def drive(load: Callable[[OnProgress], Engine], inbox: Inbox, post: Callable[[FromWorker], None]) -> None:
    """Load an engine and serve until `Close`. Posts the messages of `worker.messages`; never raises.

    Whatever an engine raises ends this worker with `LoadFailed` or `Died`, and nothing else.
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
        post(Stopped())
        return
    except ModeldError as error:
        post(LoadFailed(error.as_problem()))
        return
    except Exception as error:  # noqa: BLE001  # the wall: told as `LoadFailed`, with the traceback in the log
        _log.exception("the load failed")
        post(LoadFailed(ModelFailed(f"the load failed: {error!r}").as_problem()))
        return
    last: FromWorker = Stopped()
    try:
        inbox.attach(engine)
        post(Ready(engine.info))
        _serve(engine, inbox, post)
    except ModeldError as error:
        last = Died(error.as_problem())
    except Exception as error:  # noqa: BLE001  # the wall: told as `Died`, with the traceback in the log
        _log.exception("the engine broke")
        last = Died(EngineFailed(f"the engine broke: {error!r}").as_problem())
    finally:
        inbox.attach(None)
        engine.close()
    post(last)


def _serve(engine: Engine, inbox: Inbox, post: Callable[[FromWorker], None]) -> None:
    while True:
        for message in inbox.take(wait=not engine.busy):
            match message:
                case Submit(id=request_id, request=request):
                    engine.submit(request_id, request)
                case Cancel(id=request_id):
                    engine.cancel(request_id)
                case SetThreads(threads=threads):
                    engine.set_threads(threads)
                case Close():
                    return
        if engine.busy:
            began = time.perf_counter()
            outputs = engine.step()
            post(Step(tuple(outputs), time.perf_counter() - began))
