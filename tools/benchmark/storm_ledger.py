# SPDX-License-Identifier: GPL-3.0-only
"""Read a daemon's events of a storm: its ledger at every instant, its loads, and how many were necessary.

The ledger changes when a load begins (its bytes are reserved from then on) and when a model's memory was
given back, and at no other time; both are events with their numbers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import msgspec

from modeld.domain.daemon_events import EventKind, FleetEvent
from modeld.domain.model import MIB
from modeld.scheduler.state import Eviction, SchedulerLimits
from modeld.simulator.belady import belady_loads, fewest_loads
from modeld.simulator.replay import limits_of, simulate
from modeld.simulator.trace_from_events import parse_events


class Change(NamedTuple):
    """The ledger from an instant on (wall clock): MiB by model."""

    at: float
    held: Mapping[str, float]

    @property
    def total_mb(self) -> float:
        """What it holds altogether."""
        return sum(self.held.values())


class Ledger:
    """The ledger over time."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = changes
        self._times = [change.at for change in changes]

    def at(self, instant: float) -> float:
        """Return what it held at an instant, MiB."""
        place = bisect_right(self._times, instant)
        return self.changes[place - 1].total_mb if place else 0.0

    @property
    def most_mb(self) -> float:
        """The most it ever held."""
        return max((change.total_mb for change in self.changes), default=0.0)


class Loads(NamedTuple):
    """How often models were loaded, and how often they had to be.

    Attributes:
      by_model: loads that began.
      belady: of a server that knows all arrivals and serves in their order.
      by_service: the same in the order in which requests were given their places, batches and all.
      least: a bound for every server in order of arrival.
      exact: any two models fit and no three do, so `belady` is the optimum and not only a good rule.
      played: by the simulator, over the same arrivals: modeld's policy, and LRU.
    """

    by_model: Mapping[str, int]
    belady: int
    by_service: int
    least: int
    exact: bool
    played: Mapping[str, int]

    @property
    def total(self) -> int:
        """All loads."""
        return sum(self.by_model.values())


class Record(NamedTuple):
    """What the events of a run say."""

    ledger: Ledger
    loads: Loads
    sizes: Mapping[str, tuple[float, ...]]
    """What was reserved for each model, MiB, load by load."""
    problems: list[str]


def read(lines: Sequence[str], room_mb: float) -> Record:
    """Read the events of one run; `room_mb` is the budget less the margin. Raises: BadTrace."""
    events = [msgspec.json.decode(line, type=FleetEvent) for line in lines if line.strip()]
    problems = [f"{event.kind}: {event.model} {event.reason}" for event in events if event.kind in _BAD]
    begun = [event for event in events if event.kind is EventKind.LOADING and "need_mb" in event.numbers]
    changes = _changes(events)
    sizes: dict[str, tuple[float, ...]] = {}
    for event in begun:
        sizes[event.model] = (*sizes.get(event.model, ()), event.numbers["need_mb"])
    trace = parse_events(lines)
    arrivals = [request.model for request in trace.requests]
    granted = [event.model for event in events if event.kind is EventKind.GRANTED]
    most = {model: max(found) for model, found in sizes.items()}
    limits = SchedulerLimits(
        budget=int(room_mb * MIB), max_wait_s=1e9, max_queue_depth=1 << 20, max_queue_total=1 << 20
    )
    loads = Loads(
        by_model=Counter(event.model for event in begun),
        belady=belady_loads(arrivals, most, room_mb),
        by_service=belady_loads(granted, most, room_mb),
        least=fewest_loads(arrivals, most, room_mb),
        exact=_two_fit_and_no_three(sizes, room_mb),
        played={
            str(policy): simulate(trace, limits_of(policy, limits)).loads
            for policy in (Eviction.COST, Eviction.LRU)
        },
    )
    return Record(Ledger(changes), loads, sizes, problems)


_BAD = {EventKind.FAILED, EventKind.REFUSED, EventKind.MISSED, EventKind.BREAKER_OPENED}


def _changes(events: Sequence[FleetEvent]) -> list[Change]:
    held: dict[str, float] = {}
    changes: list[Change] = []
    for event in events:
        if event.kind is EventKind.LOADING and "need_mb" in event.numbers:
            held[event.model] = event.numbers["need_mb"]
        elif event.kind in {EventKind.STOPPED, EventKind.FAILED}:
            held.pop(event.model, None)
        else:
            continue
        changes.append(Change(event.at_unix, dict(held)))
    return changes


def _two_fit_and_no_three(sizes: Mapping[str, Sequence[float]], room_mb: float) -> bool:
    """Whether the room is that of two pages, whatever models are in it."""
    pairs = combinations([max(found) for found in sizes.values()], 2)
    threes = combinations([min(found) for found in sizes.values()], 3)
    return all(sum(pair) <= room_mb for pair in pairs) and all(sum(three) > room_mb for three in threes)
