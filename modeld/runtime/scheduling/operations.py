# SPDX-License-Identifier: GPL-3.0-only
"""Store running operations, and the last that ended."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import trio

from modeld.domain.instance_state import InstanceState
from modeld.domain.operation import Operation, OperationState, OperationStatus, Phase
from modeld.errors import OperationNotFound, Problem
from modeld.scheduler.effects import EndOperation, RefuseOperation
from modeld.scheduler.state import Fleet, Instant

# ----------------------------------------------------------------------
# How far an operation is, and what it waits for: read off the fleet whenever somebody asks.


class OperationStage(msgspec.Struct, frozen=True):
    """Where an operation is, and a sentence on it."""

    phase: Phase
    reason: str
    progress: float
    """0 to 1, without the progress of a load that is under way, which its instance knows."""


def operation_stage(fleet: Fleet, one: Operation, now: Instant) -> OperationStage:
    """Say what a running operation waits for."""
    return _of_load(fleet, one, now) if one.wants_load else _of_leaving(fleet, one)


def _of_load(fleet: Fleet, one: Operation, now: Instant) -> OperationStage:
    view = fleet.instance(one.model_id)
    reservation = next(
        (reservation for reservation in fleet.reservations if reservation.model_id == one.model_id), None
    )
    match view.state:
        case InstanceState.LOADING:
            return OperationStage(
                Phase.LOADING, f"it is being loaded, for {now - view.load_started:.1f} s", 0.0
            )
        case InstanceState.DRAINING:
            return OperationStage(Phase.STOPPING, "it is being unloaded, and is loaded again after that", 0.0)
        case InstanceState.ERROR if view.failures.retry_at > now:
            wait = view.failures.retry_at - now
            return OperationStage(Phase.QUEUED, f"its engine died; it is tried again in {wait:.1f} s", 0.0)
        case _ if reservation is None:
            return OperationStage(Phase.QUEUED, "it waits for room in memory", 0.0)
        case _ if reservation.committed:
            return OperationStage(Phase.EVICTING, f"{', '.join(reservation.victims)} makes room for it", 0.0)
        case _:
            names = ", ".join(reservation.victims)
            return OperationStage(
                Phase.DRAINING, f"{names} makes room for it as soon as no request holds it", 0.0
            )


def _of_leaving(fleet: Fleet, one: Operation) -> OperationStage:
    gone = one.departing_total - len(one.departing)
    progress = gone / one.departing_total if one.departing_total else 0.0
    busy = [view for view in map(fleet.instance, one.departing) if not view.idle]
    if busy:
        requests = sum(len(view.leases) for view in busy)
        names = ", ".join(view.model_id for view in busy)
        hold = "1 request still holds" if requests == 1 else f"{requests} requests still hold"
        return OperationStage(Phase.DRAINING, f"{hold} {names}", progress)
    loading = [
        view.model_id for view in map(fleet.instance, one.departing) if view.state is InstanceState.LOADING
    ]
    if loading:
        reason = f"{', '.join(loading)} is being loaded for requests, and goes after them"
        return OperationStage(Phase.DRAINING, reason, progress)
    return OperationStage(Phase.STOPPING, f"{', '.join(one.departing)} gives its memory back", progress)


# ----------------------------------------------------------------------

KEPT = 100
"""Operations that ended of which the store still tells."""


class OperationStore:
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
        stage = operation_stage(self._fleet(), one, trio.current_time())
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
