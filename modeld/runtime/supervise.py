# SPDX-License-Identifier: GPL-3.0-only
"""The wall around one model: however its instance ends, the scheduler hears of it and goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from modeld.core import inputs
from modeld.core.inputs import Input
from modeld.errors import EngineFailed
from modeld.runtime.instance import Instance
from modeld.worker.messages import Died, LoadFailed, Stopped

_log = logging.getLogger("modeld.supervise")


async def supervise(instance: Instance, feed: Callable[[Input], None]) -> None:
    """Run an instance to its end and report the end as an input.

    Whether and when the model is started again is decided by `core.schedule`.
    Cancellation: passes through; the instance cleans up after itself.
    """
    try:
        ending = await instance.run()
    except* Exception as group:  # noqa: BLE001  # the wall: told as `Died`, with the traceback in the log; other models serve on
        _log.exception("the instance of model %s broke", instance.model_id, exc_info=group)
        problem = EngineFailed(f"the instance broke: {group.exceptions[0]!r}").as_problem()
        ending = Died(problem)
        await trio.lowlevel.cancel_shielded_checkpoint()
    match ending:
        case Stopped():
            feed(inputs.Stopped(instance.model_id))
        case LoadFailed(problem=problem):
            feed(inputs.LoadFailed(instance.model_id, problem))
        case Died(problem=problem):
            feed(inputs.Died(instance.model_id, problem, instance.unstarted))
