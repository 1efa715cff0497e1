# SPDX-License-Identifier: GPL-3.0-only
"""Turn operators' requests into scheduler inputs, resolving model names."""

from __future__ import annotations

import secrets

import trio
from msgspec.structs import replace

from modeld.domain.model import Footprint, ModelSpec
from modeld.domain.operation import OperationStatus
from modeld.engine.llama.footprint import estimate
from modeld.runtime.scheduling.scheduler import Scheduler
from modeld.scheduler import inputs
from modeld.scheduler.plan import LoadPlan, plan


class OperatorControl:
    """A facade without state of its own. Names are ids or aliases; `key` is the name of the operator's key.

    Each method that begins an operation raises ModeldError for what is known at once: ModelNotFound,
    ModelFailed, DoesNotFit, Conflict, QueueFull, Draining.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def load(
        self, name: str, *, pin: bool | None = None, keep_alive_s: float | None = None, key: str = ""
    ) -> OperationStatus:
        """Have a model loaded, and pinned or let go if that is said, too."""
        spec = self._scheduler.find(name)
        return self._scheduler.begin(
            inputs.LoadRequested(
                operation=_new_id(), model_id=spec.id, pin=pin, keep_alive_s=keep_alive_s, key=key
            )
        )

    def unload(self, name: str, *, force: bool = False, key: str = "") -> OperationStatus:
        """Have a model unloaded: once it is idle, or with `force` at once."""
        spec = self._scheduler.find(name)
        return self._scheduler.begin(
            inputs.UnloadRequested(operation=_new_id(), model_id=spec.id, force=force, key=key)
        )

    def switch(self, name: str, *, key: str = "") -> OperationStatus:
        """Have a model loaded, and then all others unloaded that are not pinned."""
        spec = self._scheduler.find(name)
        return self._scheduler.begin(inputs.SwitchRequested(operation=_new_id(), model_id=spec.id, key=key))

    def pin(self, name: str, *, pinned: bool, key: str = "") -> ModelSpec:
        """Pin a model or let it go, until the daemon ends. Returns: the model. Raises: ModelNotFound."""
        return self._scheduler.pin(self._scheduler.find(name).id, pinned=pinned, key=key)

    def plan(self, name: str | None, *, context: int | None = None, slots: int | None = None) -> LoadPlan:
        """Return what would happen if a model were loaded now, perhaps of another size.

        Raises: ModelNotFound.
        """
        spec = resized(self._scheduler.find(name), context=context, slots=slots)
        return plan(self._scheduler.fleet, spec, trio.current_time())

    def operations(self) -> tuple[OperationStatus, ...]:
        """Return the latest operations, the oldest first."""
        return self._scheduler.operations.latest()

    def operation(self, operation_id: str) -> OperationStatus:
        """Return an operation. Raises: OperationNotFound."""
        return self._scheduler.operations.get(operation_id)

    def cancel(self, operation_id: str, *, key: str = "") -> OperationStatus:
        """End an operation that is not wanted any more; one that has ended stays as it is.

        Raises: OperationNotFound.
        """
        self._scheduler.operations.get(operation_id)
        return self._scheduler.cancel_operation(operation_id, key=key)

    async def wait(self, operation_id: str, seconds: float) -> OperationStatus:
        """Return an operation when it has ended, or as it is after so long. Raises: OperationNotFound."""
        return await self._scheduler.operations.wait(operation_id, seconds)


def resized(spec: ModelSpec, *, context: int | None, slots: int | None) -> ModelSpec:
    """Return the model with so many KV cells and slots, and what it takes then.

    That is the formula's estimate, plus what is known of its error at the present size.
    """
    options = replace(
        spec.options,
        ctx=spec.options.ctx if context is None else context,
        slots=spec.options.slots if slots is None else slots,
    )
    if options == spec.options or spec.facts is None:
        return spec
    now, then = estimate(spec.facts, spec.options), estimate(spec.facts, options)
    known = spec.footprint
    footprint = Footprint(
        weights=max(0, then.weights + known.weights - now.weights),
        kv=max(0, then.kv + known.kv - now.kv),
        compute=max(0, then.compute + known.compute - now.compute),
        overhead=max(0, then.overhead + known.overhead - now.overhead),
    )
    return replace(spec, options=options, footprint=footprint, sizing="")


def _new_id() -> str:
    return secrets.token_hex(6)
