# SPDX-License-Identifier: GPL-3.0-only
"""Build a trace from events that a daemon recorded. Pure.

Arrivals are replayed as they came; how long each held its slot is what was measured. A request that never had
a slot (refused, or gone before) gets the median of its model, so a policy that would have served it has
something to do. Sizes, loads and unloads of models are what was told of them. Requests that need no slot are
left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from modeld.domain.daemon_events import EventKind, FleetEvent
from modeld.domain.model import MIB
from modeld.domain.request import Priority
from modeld.scheduler.eviction import ASSUMED_BYTES_PER_S
from modeld.simulator.trace import BadTrace, Trace, TraceHead, TraceModel, TraceRequest

ASSUMED_SERVICE_MS = 1000
"""What a request is taken to need when none of its model was ever served."""


class _Arrival(msgspec.Struct):
    """A request on the way through the record."""

    at_ms: float
    model: str
    priority: Priority
    deadline_ms: int | None
    service_ms: int | None = None


class _Model:
    """What the record tells of a model."""

    def __init__(self) -> None:
        self.size_mb = 0.0
        self.slots = 1
        self.loads_ms: list[float] = []
        self.unloads_ms: list[float] = []
        self.services_ms: list[float] = []
        self.leaves_at: float | None = None

    def as_trace(self, model_id: str) -> TraceModel:
        """Return it as the simulator wants it."""
        size = max(self.size_mb, 1 / MIB)
        return TraceModel(
            id=model_id,
            size_mb=size,
            load_ms=round(_median(self.loads_ms, 1000 * size * MIB / ASSUMED_BYTES_PER_S)),
            unload_ms=round(_median(self.unloads_ms, 0.0)),
            slots=self.slots,
        )


class _Record:
    """Reads events in their order."""

    def __init__(self) -> None:
        self.models: dict[str, _Model] = defaultdict(_Model)
        self.arrivals: dict[tuple[str, int], _Arrival] = {}
        self.budget_mb: float | None = None
        self.missed = 0
        self._began: dict[str, float] = {}

    def take(self, event: FleetEvent) -> None:
        """Note what one event tells."""
        numbers, at_ms = event.numbers, self._at_ms(event)
        match event.kind:
            case EventKind.ARRIVED if event.cause != "aside":
                self._arrived(event, at_ms)
            case EventKind.ENDED if "slot_ms" in numbers:
                arrival = self.arrivals.get((event.run, event.ticket))
                if arrival is not None:
                    arrival.service_ms = round(numbers["slot_ms"])
                    self.models[arrival.model].services_ms.append(numbers["slot_ms"])
            case EventKind.LOADING if "need_mb" in numbers:
                self.models[event.model].size_mb = numbers["need_mb"]
                self.budget_mb = numbers.get("budget_mb", self.budget_mb)
            case EventKind.DAEMON_STARTED:
                self.budget_mb = numbers.get("budget_mb", self.budget_mb)
            case EventKind.READY:
                self.models[event.model].loads_ms.append(1000 * numbers.get("load_s", 0.0))
                self.models[event.model].slots = max(1, round(numbers.get("slots", 1)))
            case EventKind.EVICTING | EventKind.UNLOADING:
                self.models[event.model].leaves_at = at_ms
            case EventKind.STOPPED:
                model = self.models[event.model]
                if model.leaves_at is not None:
                    model.unloads_ms.append(max(0.0, at_ms - model.leaves_at))
                    model.leaves_at = None
            case EventKind.MISSED:
                self.missed += round(numbers.get("events", 1))
            case _:
                pass

    def _at_ms(self, event: FleetEvent) -> float:
        """Return when it happened: by a clock that never jumps, from the run's begin by the wall clock."""
        began = self._began.setdefault(event.run, event.at_unix * 1000 - event.uptime_ms)
        return began + event.uptime_ms

    def _arrived(self, event: FleetEvent, at_ms: float) -> None:
        model = self.models[event.model]
        model.size_mb = event.numbers.get("need_mb", model.size_mb)
        if not model.loads_ms:
            model.slots = max(1, round(event.numbers.get("slots", 1)))
        deadline = event.numbers.get("deadline_ms")
        self.arrivals[event.run, event.ticket] = _Arrival(
            at_ms=at_ms,
            model=event.model,
            priority=event.priority or Priority.NORMAL,
            deadline_ms=None if deadline is None else round(deadline),
        )


def is_recorded(line: str) -> bool:
    """Whether a line looks like an event and not like the head of a trace."""
    try:
        found = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError):
        return False
    return {"kind", "run", "seq"} <= found.keys()


def parse_events(lines: Iterable[str], head: TraceHead | None = None) -> Trace:
    """Make a trace of recorded events; `head` goes before what they tell of models and budget.

    Lines of several files and several runs may follow each other. Raises: BadTrace, with the line's number.
    """
    record = _Record()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record.take(msgspec.json.decode(line, type=FleetEvent))
        except (msgspec.DecodeError, UnicodeError) as error:
            raise BadTrace(f"line {number}: {error}; an event is expected here") from None
    if not record.arrivals:
        raise BadTrace("there is no request among these events")
    if head is None:
        asked_for = dict.fromkeys(arrival.model for arrival in record.arrivals.values())
        models = tuple(record.models[model].as_trace(model) for model in asked_for)
        head = TraceHead(models=models, budget_mb=record.budget_mb or None)
    known = {model.id for model in head.models}
    for arrival in record.arrivals.values():
        if arrival.model not in known:
            raise BadTrace(f"model {arrival.model!r} of the events is not among the models given")
    return Trace(head=head, requests=_requests(record), missed=record.missed)


def _requests(record: _Record) -> tuple[TraceRequest, ...]:
    ordered = sorted(record.arrivals.values(), key=lambda arrival: arrival.at_ms)
    first = ordered[0].at_ms
    usual = {
        name: round(_median(model.services_ms, ASSUMED_SERVICE_MS)) for name, model in record.models.items()
    }
    return tuple(
        TraceRequest(
            at_ms=round(arrival.at_ms - first),
            model=arrival.model,
            service_ms=usual[arrival.model] if arrival.service_ms is None else arrival.service_ms,
            priority=arrival.priority,
            deadline_ms=arrival.deadline_ms,
        )
        for arrival in ordered
    )


def _median(values: Sequence[float], otherwise: float) -> float:
    if not values:
        return otherwise
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
