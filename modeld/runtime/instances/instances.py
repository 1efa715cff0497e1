# SPDX-License-Identifier: GPL-3.0-only
"""Start instances as loads are ordered, and remove them when they end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import trio

from modeld.domain.model import ModelSpec
from modeld.errors import EngineFailed, OutOfMemory, Problem
from modeld.runtime.instances.factory import InstanceFactory
from modeld.runtime.instances.instance import Instance
from modeld.scheduler import inputs
from modeld.scheduler.effects import StartLoad
from modeld.scheduler.inputs import Input
from modeld.worker.messages import WorkerDied, WorkerLoadFailed, WorkerStopped

# ----------------------------------------------------------------------
# The wall around one model: however its instance ends, the scheduler hears of it and goes on.

_log = logging.getLogger("modeld.supervise")


async def supervise(instance: Instance, feed: Callable[[Input], None]) -> None:
    """Run an instance to its end and report the end as an input.

    Whether and when the model is started again is decided by `scheduler.step`.
    Cancellation: passes through; the instance cleans up after itself.
    """
    try:
        ending = await instance.run()
    except* Exception as group:  # noqa: BLE001  # the wall: told as `InstanceDied`, with the traceback in the log; other models serve on
        _log.exception("the instance of model %s broke", instance.model_id, exc_info=group)
        problem = EngineFailed(f"the instance broke: {group.exceptions[0]!r}").as_problem()
        ending = WorkerDied(problem)
        await trio.lowlevel.cancel_shielded_checkpoint()
    match ending:
        case WorkerStopped():
            feed(inputs.InstanceStopped(instance.model_id))
        case WorkerLoadFailed(problem=problem):
            feed(inputs.InstanceLoadFailed(instance.model_id, problem))
        case WorkerDied(problem=problem):
            feed(inputs.InstanceDied(instance.model_id, problem, instance.unstarted))


# ----------------------------------------------------------------------


class Instances:
    """Owns the instances, and the nursery in which their supervisors run.

    Attributes:
      there: those that run, by model.
    """

    def __init__(
        self,
        launcher: InstanceFactory,
        *,
        feed: Callable[[Input], None],
        on_progress: Callable[[str, float], None],
    ) -> None:
        """`feed` takes what happens to them as inputs; `on_progress` hears how far the load of a model is."""
        self._launcher = launcher
        self._feed = feed
        self._on_progress = on_progress
        self._there: dict[str, Instance] = {}
        self._nursery: trio.Nursery | None = None
        self.there: Mapping[str, Instance] = self._there

    @contextmanager
    def running_in(self, nursery: trio.Nursery) -> Generator[None]:
        """Run new instances in this nursery, until the end of the block."""
        self._nursery = nursery
        try:
            yield
        finally:
            self._nursery = None

    @property
    def may_start(self) -> bool:
        """Whether there is a nursery to run them in."""
        return self._nursery is not None

    def start(self, load: StartLoad) -> None:
        """Begin to load a model as it was ordered."""
        if self._nursery is None:
            raise RuntimeError("the scheduler does not run")
        instance = self._launcher.instance(load, feed=self._feed, on_progress=self._on_progress)
        self._there[load.spec.id] = instance
        self._nursery.start_soon(supervise, instance, self._feed)

    def end(self, model_id: str) -> None:
        """Forget one that ended."""
        del self._there[model_id]

    def failed(self, model_id: str, spec: ModelSpec | None, problem: Problem) -> None:
        """Forget one that was never ready; `spec` is that of its model, if that is still known."""
        self.end(model_id)
        if spec is not None and problem.kind == OutOfMemory.kind:
            self._launcher.out_of_memory(spec)

    def progress_of(self, model_id: str) -> float:
        """Return how far the load of a model is, in [0, 1]; 0 for one that is not there."""
        instance = self._there.get(model_id)
        return 0.0 if instance is None else instance.progress
