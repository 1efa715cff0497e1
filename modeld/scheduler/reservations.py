# SPDX-License-Identifier: GPL-3.0-only
"""Claims: memory that is being freed for one model is kept for it until that model loads.

The arithmetic of what is still for anybody, and the upkeep of claims as the world changes. Claims are
made and met in `scheduler.loading`.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from modeld.domain.instance_state import State
from modeld.memory.devices import Amount, above_zero, minus, plus
from modeld.scheduler.capacity import amounts, need_of
from modeld.scheduler.state import Claim, Fleet, Instant


def owed(fleet: Fleet, claims: Iterable[Claim]) -> Amount:
    """Return how many of the free bytes these claims need besides what their victims will free."""
    total = amounts(fleet, ())
    for claim in claims:
        total = plus(total, above_zero(minus(need(fleet, claim), pending(fleet, claim))))
    return total


def pending(fleet: Fleet, claim: Claim) -> Amount:
    """Return the bytes a claim's victims still hold."""
    return amounts(fleet, (fleet.instance(victim) for victim in claim.victims))


def spoken_for(fleet: Fleet, other_than: str = "") -> frozenset[str]:
    """Return the models that go for somebody else than `other_than`."""
    return frozenset(
        victim for claim in fleet.claims if claim.model_id != other_than for victim in claim.victims
    )


def with_claim(fleet: Fleet, claim: Claim) -> Fleet:
    """Return the fleet with this claim in place of the model's earlier one, or as the youngest."""
    if any(other.model_id == claim.model_id for other in fleet.claims):
        claims = tuple(claim if other.model_id == claim.model_id else other for other in fleet.claims)
    else:
        claims = (*fleet.claims, claim)
    return replace(fleet, claims=claims)


def without_claim(fleet: Fleet, model_id: str) -> Fleet:
    """Return the fleet without this model's claim; what its victims free is for anybody then."""
    return replace(fleet, claims=tuple(claim for claim in fleet.claims if claim.model_id != model_id))


def tidied(fleet: Fleet, now: Instant) -> Fleet:
    """Return the fleet without claims nobody needs, and without victims that are gone, hang or are pinned."""
    if not fleet.claims:
        return fleet
    for claim in fleet.claims:
        view = fleet.instance(claim.model_id)
        if (
            fleet.draining
            or not fleet.is_wanted(claim.model_id)
            or claim.model_id not in fleet.catalog.models
            or view.state is not State.QUEUED
            or now < view.failures.retry_at
        ):
            fleet = without_claim(fleet, claim.model_id)
    claims = tuple(
        replace(claim, victims=tuple(victim for victim in claim.victims if _goes(fleet, claim, victim)))
        for claim in fleet.claims
    )
    return fleet if claims == fleet.claims else replace(fleet, claims=claims)


def _goes(fleet: Fleet, claim: Claim, victim: str) -> bool:
    view = fleet.instance(victim)
    if not view.state.holds_memory or view.stuck is not None:
        return False
    return claim.committed or view.stopping or not fleet.is_pinned(victim)


def need(fleet: Fleet, claim: Claim) -> Amount:
    """Return the bytes that a claim is for."""
    spec = fleet.catalog.models.get(claim.model_id)
    return amounts(fleet, ()) if spec is None else need_of(fleet, spec, claim.placement).amount
