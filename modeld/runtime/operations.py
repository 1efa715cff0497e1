# SPDX-License-Identifier: GPL-3.0-only
"""The book of operations: those that run, and the last that ended, for who asks or waits."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from modeld.core.effects import EndOperation, RefuseOperation
from modeld.core.fleet import Fleet
from modeld.core.operations import Operation, OperationState, OperationStatus, Phase
from modeld.core.progress import stage_of
from modeld.errors import OperationNotFound, Problem

KEPT = 100
"""Operations that ended of which the book still tells."""


class OperationBook:
    """Knows operations by id. The scheduler tells it when one begins and ends."""

    def __init__(self, fleet: Callable[[], Fleet], progress: Callable[[str], float]) -> None:
        """`fleet` returns the scheduler's snapshot, `progress` how far the load of a model is."""
        self._fleet = fleet
        self._progress = progress
        self._running: dict[str, tuple[float, trio.Event]] = {}  # when it was asked for, Unix time; its end
        self._ended: dict[str, OperationStatus] = {}
        self._refused: dict[str, Problem] = {}  # until `begun` tells it

    def begin(self, operation_id: str) -> None:
        """Note that an operation was asked for."""
        self._running[operation_id] = time.time(), trio.Event()

    def refuse(self, effect: RefuseOperation) -> None:
        """Forget one that was not begun, but for the reason."""
        del self._running[effect.operation]
        self._refused[effect.operation] = effect.problem

    def begun(self, operation_id: str) -> OperationStatus:
        """Return one that was just asked for; it may have ended. Raises: what it was refused for."""
        problem = self._refused.pop(operation_id, None)
        if problem is not None:
            raise problem.as_error()
        return self.get(operation_id)

    def end(self, effect: EndOperation) -> None:
        """Note the end of one, and wake who waits for it."""
        one = effect.operation
        created, ended = self._running.pop(one.id)
        problem = effect.problem
        done = effect.state is OperationState.DONE
        self._ended[one.id] = OperationStatus(
            id=one.id,
            kind=one.kind,
            model=one.model_id,
            state=effect.state,
            phase=Phase.DONE,
            progress=1.0 if done else 0.0,
            reason=effect.reason if problem is None else problem.message,
            evicted=one.evicted,
            created_unix=created,
            ended_unix=max(created, time.time()),
            error=None if problem is None else problem.message,
            code=None if problem is None else problem.status,
            key=one.key or None,
        )
        while len(self._ended) > KEPT:
            del self._ended[next(iter(self._ended))]
        ended.set()

    def latest(self) -> tuple[OperationStatus, ...]:
        """Return the last `KEPT` that ended or run, the oldest first; those that run come last."""
        running = [self._told(one) for one in self._fleet().operations]
        return tuple([*self._ended.values(), *running][-KEPT:])

    def get(self, operation_id: str) -> OperationStatus:
        """Return one. Raises: OperationNotFound."""
        ended = self._ended.get(operation_id)
        if ended is not None:
            return ended
        for one in self._fleet().operations:
            if one.id == operation_id:
                return self._told(one)
        raise OperationNotFound(
            f"there is no operation {operation_id[:100]!r}; the last {KEPT} that ended are kept, "
            "see GET /operations"
        )

    async def wait(self, operation_id: str, seconds: float) -> OperationStatus:
        """Return an operation when it has ended, or as it is after so many seconds.

        Raises: OperationNotFound. Cancellation: the operation goes on.
        """
        running = self._running.get(operation_id)
        if running is None:
            await trio.lowlevel.checkpoint()
            return self.get(operation_id)
        with trio.move_on_after(seconds):
            await running[1].wait()
        return self.get(operation_id)

    def _told(self, one: Operation) -> OperationStatus:
        stage = stage_of(self._fleet(), one, trio.current_time())
        loading = stage.phase is Phase.LOADING and one.wants_load
        return OperationStatus(
            id=one.id,
            kind=one.kind,
            model=one.model_id,
            state=OperationState.RUNNING,
            phase=stage.phase,
            progress=self._progress(one.model_id) if loading else stage.progress,
            reason=stage.reason,
            evicted=one.evicted,
            created_unix=self._running[one.id][0],
            key=one.key or None,
        )
