# SPDX-License-Identifier: GPL-3.0-only
"""An operator on paper: short words for what operators ask of a scheduler, and how it ended."""

from __future__ import annotations

from support.fleets import Paper

from modeld.domain.operation import Operation
from modeld.runtime.scheduling.operations import Stage, stage_of
from modeld.scheduler.effects import EndOperation, RefuseOperation
from modeld.scheduler.inputs import GivenUp, Input, LoadAsked, Pinned, SwitchAsked, UnloadAsked


class Lever:
    """Pulls at a `Paper`. Each method that begins an operation returns its id."""

    def __init__(self, paper: Paper) -> None:
        self.paper = paper
        self._count = 0

    def load(self, name: str, **more: object) -> str:
        return self._ask(LoadAsked, name, more)

    def unload(self, name: str, **more: object) -> str:
        return self._ask(UnloadAsked, name, more)

    def switch(self, name: str) -> str:
        return self._ask(SwitchAsked, name, {})

    def give_up(self, operation: str) -> None:
        self.paper.feed(GivenUp(operation))

    def pin(self, name: str, *, pinned: bool = True) -> None:
        self.paper.feed(Pinned(f"{name}.gguf", pinned))

    def _ask(self, kind: type[Input], name: str, more: dict[str, object]) -> str:
        self._count += 1
        operation = f"op{self._count}"
        self.paper.feed(kind(operation=operation, model_id=f"{name}.gguf", **more))
        return operation

    @property
    def running(self) -> list[str]:
        return [one.id for one in self.paper.fleet.operations]

    @property
    def ends(self) -> dict[str, str]:
        """Operation -> how it ended; a refusal as the kind of its problem."""
        found = {}
        for effect in self.paper.effects:
            if isinstance(effect, EndOperation):
                found[effect.operation.id] = effect.state.value
            elif isinstance(effect, RefuseOperation):
                found[effect.operation] = effect.problem.kind
        return found

    def end_of(self, operation: str) -> EndOperation:
        [end] = [
            effect
            for effect in self.paper.effects
            if isinstance(effect, EndOperation) and effect.operation.id == operation
        ]
        return end

    def operation(self, operation: str) -> Operation:
        return next(one for one in self.paper.fleet.operations if one.id == operation)

    def stage(self, operation: str) -> Stage:
        return stage_of(self.paper.fleet, self.operation(operation), self.paper.now)
