# SPDX-License-Identifier: GPL-3.0-only
"""Which loaded models may make room for another one, now or once they are idle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from modeld.core.amounts import Amount, minus
from modeld.core.claims import spoken_for
from modeld.core.eviction import Candidate, candidate, choose
from modeld.core.fleet import Fleet
from modeld.core.instance_view import InstanceView
from modeld.core.instant import Instant
from modeld.core.ledger import amounts
from modeld.core.lifecycle import State
from modeld.core.models import ModelSpec

SPARE_S = 1.0
"""A request waits at most so long for a busy model that costs less than half as much as the idle ones.

In the simulator (docs/scheduling.md) this saves up to 4 % of the loads and adds nothing to the worst
wait; 2 s save no more.
"""


def cost(fleet: Fleet, victims: Iterable[str], now: Instant) -> float:
    """Return what the loss of these models is expected to cost, seconds of loading per second."""
    return sum(candidate(fleet, fleet.instance(victim), now).cost for victim in victims)


def idle_set(fleet: Fleet, spec: ModelSpec, missing: Amount, now: Instant) -> tuple[str, ...] | None:
    """Choose idle models that may go at once; those that stop already count first."""
    others = spoken_for(fleet, spec.id)
    stopping = [
        view
        for view in fleet.instances.values()
        if view.stopping and view.stuck is None and view.model_id not in others
    ]
    candidates = (
        candidate(fleet, view, now)
        for view in movable(fleet, others, {State.READY})
        if view.idle and now >= view.ready_at + fleet.limits.min_residency_s
    )
    return _beside(stopping, candidates, missing, fleet)


def drain_set(
    fleet: Fleet, spec: ModelSpec, missing: Amount, states: set[State], now: Instant
) -> tuple[str, ...] | None:
    """Choose models that go once they are idle; those that drain already count first."""
    others = spoken_for(fleet, spec.id)
    views = fleet.instances.values()
    draining = [
        view
        for view in views
        if view.state is State.DRAINING and view.stuck is None and view.model_id not in others
    ]
    candidates = (candidate(fleet, view, now) for view in movable(fleet, others, states))
    return _beside(draining, candidates, missing, fleet)


def _beside(
    leaving: list[InstanceView], candidates: Iterable[Candidate], missing: Amount, fleet: Fleet
) -> tuple[str, ...] | None:
    missing = minus(missing, amounts(fleet, leaving))
    chosen = choose(candidates, missing, fleet.limits.eviction)
    return None if chosen is None else (*(view.model_id for view in leaving), *chosen)


def movable(fleet: Fleet, others: frozenset[str], states: set[State]) -> Iterator[InstanceView]:
    """Yield the models in one of these states that may be asked to go: not pinned, not going for others."""
    for view in fleet.instances.values():
        if view.state in states and view.model_id not in others and not fleet.is_pinned(view.model_id):
            yield view
