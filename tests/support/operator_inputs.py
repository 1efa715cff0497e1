# SPDX-License-Identifier: GPL-3.0-only
"""An operator on driver: short words for what operators ask of a scheduler, and how it ended."""

from __future__ import annotations

from support.scheduler_driver import SchedulerDriver

from modeld.domain.operation import Operation
from modeld.runtime.scheduling.operations import OperationStage, operation_stage
from modeld.scheduler.effects import EndOperation, RefuseOperation
from modeld.scheduler.inputs import (
    Input,
    LoadRequested,
    OperationCancelled,
    PinChanged,
    SwitchRequested,
    UnloadRequested,
)


class OperatorInputs:
    """Pulls at a `Paper`. Each method that begins an operation returns its id."""

    def __init__(self, driver: SchedulerDriver) -> None:
        self.driver = driver
        self._count = 0

    def load(self, name: str, **more: object) -> str:
        return self._ask(LoadRequested, name, more)

    def unload(self, name: str, **more: object) -> str:
        return self._ask(UnloadRequested, name, more)

    def switch(self, name: str) -> str:
        return self._ask(SwitchRequested, name, {})

    def cancel(self, operation: str) -> None:
        self.driver.feed(OperationCancelled(operation))

    def pin(self, name: str, *, pinned: bool = True) -> None:
        self.driver.feed(PinChanged(f"{name}.gguf", pinned))

    def _ask(self, kind: type[Input], name: str, more: dict[str, object]) -> str:
        self._count += 1
        operation = f"op{self._count}"
        self.driver.feed(kind(operation=operation, model_id=f"{name}.gguf", **more))
        return operation

    @property
    def running(self) -> list[str]:
        return [one.id for one in self.driver.fleet.operations]

    @property
    def ends(self) -> dict[str, str]:
        """Operation -> how it ended; a refusal as the kind of its problem."""
        found = {}
        for effect in self.driver.effects:
            if isinstance(effect, EndOperation):
                found[effect.operation.id] = effect.state.value
            elif isinstance(effect, RefuseOperation):
                found[effect.operation] = effect.problem.kind
        return found

    def end_of(self, operation: str) -> EndOperation:
        [end] = [
            effect
            for effect in self.driver.effects
            if isinstance(effect, EndOperation) and effect.operation.id == operation
        ]
        return end

    def operation(self, operation: str) -> Operation:
        return next(one for one in self.driver.fleet.operations if one.id == operation)

    def stage(self, operation: str) -> OperationStage:
        return operation_stage(self.driver.fleet, self.operation(operation), self.driver.now)
