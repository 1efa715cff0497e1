# SPDX-License-Identifier: GPL-3.0-only
"""Model specs, and a driver that feeds inputs to `step` and keeps the effects."""

from __future__ import annotations

from collections.abc import Iterable

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, Footprint, LoadOptions, ModelSpec, catalog_of
from modeld.scheduler.effects import (
    ChangeThreads,
    CutRequest,
    Effect,
    Grant,
    RecordDecision,
    Refuse,
    StartLoad,
    StopInstance,
)
from modeld.scheduler.inputs import (
    Input,
    InstanceLoaded,
    InstanceStopped,
    RequestArrived,
    SlotReleased,
    SlotTaken,
)
from modeld.scheduler.state import Fleet, PendingRequest, SchedulerLimits
from modeld.scheduler.step import step


def spec(name: str, mb: int = 100, *, slots: int = 2, threads: int = 2, **more: object) -> ModelSpec:
    """A model of `mb` MiB."""
    return ModelSpec(
        id=f"{name}.gguf",
        path=f"/models/{name}.gguf",
        aliases=(name,),
        options=LoadOptions(slots=slots, threads=threads),
        footprint=Footprint(weights=mb * MIB),
        **more,
    )


def limits(budget_mb: int | None = None, **more: object) -> SchedulerLimits:
    """Limits with a budget in MiB and two cores."""
    budget = None if budget_mb is None else budget_mb * MIB
    return SchedulerLimits(**{"budget": budget, "cores": 2, **more})


class SchedulerDriver:
    """Feeds inputs, keeps all effects, and lets a test say what the world answers."""

    def __init__(self, specs: Iterable[ModelSpec], limits: SchedulerLimits) -> None:
        self.fleet = Fleet(limits=limits, catalog=catalog_of(specs))
        self.now = 0.0
        self.effects: list[Effect] = []
        self._tickets = 0

    def feed(self, event: Input) -> list[Effect]:
        self.fleet, effects = step(self.fleet, event, self.now)
        self.effects += effects
        return effects

    def arrive(self, name: str, **more: object) -> int:
        self._tickets += 1
        self.feed(RequestArrived(PendingRequest(ticket=self._tickets, model_id=f"{name}.gguf", **more)))
        return self._tickets

    def loaded(self, name: str) -> list[Effect]:
        return self.feed(InstanceLoaded(f"{name}.gguf", self.fleet.instance(f"{name}.gguf").slots))

    def stopped(self, name: str) -> list[Effect]:
        return self.feed(InstanceStopped(f"{name}.gguf"))

    def serve(self, ticket: int) -> None:
        """Let a granted ticket have its slot and end at once."""
        self.feed(SlotTaken(ticket))
        self.feed(SlotReleased(ticket, served=True))

    def up(self, *names: str) -> None:
        """Load models by one served request each."""
        for name in names:
            ticket = self.arrive(name)
            self.loaded(name)
            self.serve(ticket)
            self.now += 1

    def state(self, name: str) -> InstanceState:
        return self.fleet.instance(f"{name}.gguf").state

    def of(self, kind: type[Effect]) -> list[Effect]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def loads(self) -> list[str]:
        return [effect.spec.id for effect in self.effects if isinstance(effect, StartLoad)]

    @property
    def stops(self) -> list[str]:
        return [effect.model_id for effect in self.effects if isinstance(effect, StopInstance)]

    @property
    def grants(self) -> list[int]:
        return [effect.ticket for effect in self.effects if isinstance(effect, Grant)]

    @property
    def refusals(self) -> dict[int, str]:
        return {effect.ticket: effect.problem.kind for effect in self.effects if isinstance(effect, Refuse)}

    @property
    def cuts(self) -> dict[int, str]:
        return {
            effect.ticket: effect.reason.value for effect in self.effects if isinstance(effect, CutRequest)
        }

    @property
    def threads(self) -> list[tuple[str, int]]:
        return [(e.model_id, e.threads) for e in self.effects if isinstance(e, ChangeThreads)]

    @property
    def decisions(self) -> list[str]:
        return [effect.action for effect in self.effects if isinstance(effect, RecordDecision)]
