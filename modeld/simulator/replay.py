# SPDX-License-Identifier: GPL-3.0-only
"""Replay a trace against the scheduler in virtual time. Pure and deterministic.

The decisions are those of the daemon, by the same `scheduler.step.step`; only the world around it is made
up here: loads, unloads and services take as many ms as the trace says, and never fail.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Mapping

import msgspec

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, Footprint, LoadOptions, ModelSpec, catalog_of
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import CutRequest, Effect, Grant, Refuse, StartLoad, StopInstance
from modeld.scheduler.inputs import (
    Input,
    InstanceLoaded,
    InstanceStopped,
    RequestArrived,
    SlotReleased,
    SlotTaken,
    Tick,
)
from modeld.scheduler.state import Eviction, Fleet, PendingRequest, SchedulerLimits
from modeld.scheduler.step import step
from modeld.simulator.trace import Trace, TraceRequest


class WaitTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds from arrival to a slot, or to the refusal of who waited in vain."""

    p50_ms: int = 0
    p99_ms: int = 0
    worst_ms: int = 0


class SimulationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a trace."""

    policy: str
    requests: int
    served: int
    refused: Mapping[str, int]
    """Refusals by kind."""
    loads: int
    reloads: int
    """Loads of models that had been loaded before."""
    loading_ms: int
    """Time spent on all loads together."""
    evictions: int
    waits: WaitTimes
    waits_by_model: Mapping[str, tuple[int, ...]]
    """Every wait, ms, ascending."""
    held_mb: float
    """Mean of what the ledger held, over the whole time."""
    idle_mb: float
    """Of it, what was held by models that no request used."""
    took_ms: int
    """Until the last request had ended."""


def limits_of(policy: Eviction, limits: SchedulerLimits) -> SchedulerLimits:
    """Return the limits of a policy: `cost` is modeld's own, `lru` is what others do.

    LRU: the model that was used least recently goes, at once; busy ones are never asked to.
    """
    if policy is Eviction.COST:
        return msgspec.structs.replace(limits, eviction=policy)
    return msgspec.structs.replace(
        limits, eviction=policy, max_wait_before_drain_s=math.inf, min_residency_s=0.0
    )


def simulate(trace: Trace, limits: SchedulerLimits) -> SimulationReport:
    """Play a trace to its end and report. `limits.budget` holds, not that of the trace."""
    return _World(trace, limits).play()


class _World:
    """The engines and clients of a trace, and the books of what happened."""

    def __init__(self, trace: Trace, limits: SchedulerLimits) -> None:
        self._models = {model.id: model for model in trace.head.models}
        specs = [
            ModelSpec(
                id=model.id,
                path=model.id,
                pinned=model.pinned,
                options=LoadOptions(slots=model.slots),
                footprint=Footprint(weights=math.ceil(model.size_mb * MIB)),
            )
            for model in trace.head.models
        ]
        self._trace = trace
        self._fleet = Fleet(limits=limits, catalog=catalog_of(specs))
        self._now = 0
        self._sequence = 0
        self._coming: list[tuple[int, int, Input]] = []
        self._requests: dict[int, TraceRequest] = {}
        self._fifo: dict[str, deque[int]] = {model: deque() for model in self._models}
        self._running: dict[str, set[int]] = {model: set() for model in self._models}
        self._waits: dict[str, list[int]] = {model: [] for model in self._models}
        self._served = 0
        self._refused: Counter[str] = Counter()
        self._loads: Counter[str] = Counter()
        self._held = 0.0
        self._idle = 0.0

    def play(self) -> SimulationReport:
        for ticket, request in enumerate(self._trace.requests, start=1):
            self._requests[ticket] = request
            deadline = None if request.deadline_ms is None else (request.at_ms + request.deadline_ms) / 1000
            pending = PendingRequest(
                ticket=ticket, model_id=request.model, priority=request.priority, deadline=deadline
            )
            self._at(request.at_ms, RequestArrived(pending))
        while True:
            due = self._due()
            if self._coming and (due is None or self._coming[0][0] <= due):
                at, _, event = heapq.heappop(self._coming)
            elif due is not None:
                at, event = due, Tick()
            else:
                break
            self._pass_time(at)
            self._feed(event)
        return self._report()

    def _due(self) -> int | None:
        """Return the first ms at which the scheduler wants to look again."""
        due = next_deadline(self._fleet, self._now / 1000)
        if due is None or math.isinf(due):
            return None
        at = max(self._now, math.ceil(due * 1000))
        return at + 1 if at / 1000 < due or at == self._now else at

    def _pass_time(self, at: int) -> None:
        span = at - self._now
        if span:
            for view in self._fleet.instances.values():
                self._held += view.reserved * span
                if view.idle and view.state is InstanceState.READY:
                    self._idle += view.reserved * span
        self._now = at

    def _at(self, at: int, event: Input) -> None:
        self._sequence += 1
        heapq.heappush(self._coming, (at, self._sequence, event))

    def _feed(self, event: Input) -> None:
        if isinstance(event, SlotReleased):
            model = self._requests[event.ticket].model
            if event.ticket not in self._running[model]:
                return  # It was cut, and let go of then.
            self._running[model].discard(event.ticket)
            self._served += event.served
        self._fleet, effects = step(self._fleet, event, self._now / 1000)
        for effect in effects:
            self._perform(effect)
        for model in self._models:
            self._fill(model)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case StartLoad(spec=spec):
                self._loads[spec.id] += 1
                model = self._models[spec.id]
                self._at(self._now + model.load_ms, InstanceLoaded(spec.id, model.slots))
            case StopInstance(model_id=model_id):
                self._at(self._now + self._models[model_id].unload_ms, InstanceStopped(model_id))
            case Grant(ticket=ticket, model_id=model_id):
                self._fifo[model_id].append(ticket)
            case Refuse(ticket=ticket, problem=problem):
                self._refused[problem.kind] += 1
                self._waited(ticket)
            case CutRequest(ticket=ticket, problem=problem):
                self._cut(ticket, problem.kind)
            case _:
                pass

    def _cut(self, ticket: int, kind: str) -> None:
        self._refused[kind] += 1
        model = self._requests[ticket].model
        if ticket not in self._running[model]:
            self._fifo[model].remove(ticket)
            self._running[model].add(ticket)
            self._waited(ticket)
        self._at(self._now, SlotReleased(ticket, served=False))

    def _fill(self, model: str) -> None:
        while self._fifo[model] and len(self._running[model]) < self._models[model].slots:
            ticket = self._fifo[model].popleft()
            self._running[model].add(ticket)
            self._waited(ticket)
            self._at(
                self._now + self._trace.service_ms(self._requests[ticket]), SlotReleased(ticket, served=True)
            )
            self._feed(SlotTaken(ticket))

    def _waited(self, ticket: int) -> None:
        request = self._requests[ticket]
        self._waits[request.model].append(self._now - request.at_ms)

    def _report(self) -> SimulationReport:
        waits = sorted(wait for waits in self._waits.values() for wait in waits)
        span = max(1, self._now)
        return SimulationReport(
            policy=str(self._fleet.limits.eviction),
            requests=len(self._requests),
            served=self._served,
            refused=dict(sorted(self._refused.items())),
            loads=sum(self._loads.values()),
            reloads=sum(count - 1 for count in self._loads.values()),
            loading_ms=sum(count * self._models[model].load_ms for model, count in self._loads.items()),
            evictions=self._fleet.evictions,
            waits=WaitTimes(
                p50_ms=_percentile(waits, 50), p99_ms=_percentile(waits, 99), worst_ms=_percentile(waits, 100)
            ),
            waits_by_model={model: tuple(sorted(waits)) for model, waits in self._waits.items()},
            held_mb=round(self._held / span / MIB, 3),
            idle_mb=round(self._idle / span / MIB, 3),
            took_ms=self._now,
        )


def _percentile(ordered: list[int], percent: int) -> int:
    """Return the nearest-rank percentile."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else 0
