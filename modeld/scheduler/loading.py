# SPDX-License-Identifier: GPL-3.0-only
"""Load models that requests wait for, and make room for them: rule 5 of `scheduler.step`.

A demand that does not fit gets a reservation as soon as somebody can go for it. From then on the bytes that
become free are its own, so no eviction is made in vain and no later demand delays it.

    5a. reservations are met, the oldest first, when their bytes are free; until then their victims are
        stopped as soon as enough of them are idle
    5b. other demands, the most urgent first, are loaded where they fit in what no reservation needs
    5c. the first that does not fit gets a reservation on models that are idle, or, once it waited for
        `max_wait_before_drain`, on busy ones, whose gates close when their turn is over
        (models whose loss costs more than twice as much as that of busy ones are spared for a second)
    5d. behind a demand that still waits for its reservation, nothing is evicted
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState, transition
from modeld.domain.model import MIB, ModelSpec
from modeld.errors import Evicted, Problem
from modeld.memory.devices import Amount, fits_in, subtract
from modeld.memory.layer_placement import in_mib
from modeld.scheduler.capacity import (
    LoadRequirement,
    cannot_fit_yet,
    device_bytes,
    fitting_size,
    free_memory,
    load_targets,
    never_fits,
    threads_for,
)
from modeld.scheduler.draining import gate_closed_since
from modeld.scheduler.effects import CutReason, Effect, Outcome, RecordDecision, StartLoad
from modeld.scheduler.eviction import (
    SPARE_S,
    busy_victims,
    choose_victims,
    cost,
    evictable,
    eviction_candidate,
    idle_victims,
)
from modeld.scheduler.operations import fail_loads
from modeld.scheduler.queue_order import (
    cut_leases,
    demands,
    drain_start,
    oldest_arrival,
    refuse_waiters,
    requesting_key,
)
from modeld.scheduler.reservations import (
    need,
    pending_bytes,
    reserved_bytes,
    victims_of_others,
    with_reservation,
    without_reservation,
)
from modeld.scheduler.state import Eviction, Fleet, Instant, Reservation

# ----------------------------------------------------------------------
# Makes the reservation of a demand that does not fit: at which place room is made for it, and who goes. Pure.


def make_reservation(fleet: Fleet, spec: ModelSpec, now: Instant) -> Reservation | None:
    """Say who goes for a demand that does not fit: idle models, or busy ones if it waited long enough."""
    spare = subtract(_free_for(fleet), reserved_bytes(fleet, fleet.reservations))
    missing = [(goal, subtract(goal.amount, spare)) for goal in load_targets(fleet, spec)]
    ways = [(goal, lacks, idle_victims(fleet, spec, lacks, now)) for goal, lacks in missing]
    made = _cheapest(fleet, ways, now)
    oldest = oldest_arrival(fleet, spec.id)
    if made is not None:
        goal, lacks, idle = made
        if oldest is not None and now < oldest + SPARE_S and _is_expensive(fleet, spec, idle, lacks, now):
            return None
        return _reserved(spec, goal, idle, now, committed=True)
    drains = drain_start(fleet, spec.id)
    if drains is None or now < drains:
        return None
    for states in ({InstanceState.READY}, {InstanceState.READY, InstanceState.LOADING}):
        ways = [(goal, lacks, busy_victims(fleet, spec, lacks, states, now)) for goal, lacks in missing]
        made = _cheapest(fleet, ways, now)
        if made is not None:
            goal, _, victims = made
            return _reserved(spec, goal, victims, now)
    return None


def _reserved(
    spec: ModelSpec, goal: LoadRequirement, victims: tuple[str, ...], now: Instant, *, committed: bool = False
) -> Reservation:
    return Reservation(
        model_id=spec.id,
        victims=victims,
        since=now,
        widened_at=now,
        committed=committed,
        placement=goal.placement,
    )


def _free_for(fleet: Fleet) -> Amount:
    """Return what is free; where nothing is limited nobody asks."""
    return free_memory(fleet) or device_bytes(fleet, ())


def _cheapest(
    fleet: Fleet, ways: Iterable[tuple[LoadRequirement, Amount, tuple[str, ...] | None]], now: Instant
) -> tuple[LoadRequirement, Amount, tuple[str, ...]] | None:
    """Return the way to make room that costs least, the first of those that cost the same."""
    able = [(goal, lacks, victims) for goal, lacks, victims in ways if victims is not None]
    return min(able, key=lambda way: cost(fleet, way[2], now), default=None)


def _is_expensive(
    fleet: Fleet, spec: ModelSpec, idle: tuple[str, ...], missing: Amount, now: Instant
) -> bool:
    """Whether busy models would cost less than half as much: they may be idle in a moment."""
    if fleet.limits.eviction is Eviction.LRU:
        return False
    cheapest = busy_victims(fleet, spec, missing, {InstanceState.READY}, now)
    return cheapest is not None and cost(fleet, cheapest, now) < cost(fleet, idle, now) / 2


# ----------------------------------------------------------------------


def load_demands(fleet: Fleet, now: Instant) -> Outcome:
    """Rule 5: start the loads that fit, and make room for the others. See the module's docstring."""
    effects: list[Effect] = []
    if fleet.draining or not (fleet.waiting or fleet.reservations or _unmet_demands(fleet)):
        return fleet, effects
    for reservation in fleet.reservations:  # Rule 5a.
        fleet, more = _serve_demand(fleet, reservation, now)
        effects += more
    blocked = False
    spare = _spare(fleet)
    claimed = {reservation.model_id for reservation in fleet.reservations}
    for model_id in demands(fleet, now):
        view = fleet.instance(model_id)
        spec = fleet.catalog.models.get(model_id)
        if spec is None or model_id in claimed or view.state.holds_memory or now < view.failures.retry_at:
            continue
        if (refused := _refuse_if_never(fleet, spec)) is not None:
            fleet, more = refused
            effects += more
            spare = _spare(fleet)
            continue
        if (fit := fitting_size(fleet, spec, spare)) is not None:  # Rule 5b.
            fleet, more = _start(fleet, spec, fit, now)
            effects += more
            spare = _spare(fleet)
            continue
        if view.state is not InstanceState.QUEUED:
            fleet = fleet.with_instance(replace(view, state=transition(view.state, InstanceState.QUEUED)))
        if blocked:  # Rule 5d.
            continue
        made = make_reservation(fleet, spec, now)  # Rule 5c.
        if made is None:
            blocked = True
            continue
        fleet = with_reservation(fleet, made)
        spare = _spare(fleet)
        if made.committed:
            fleet, more = _evict(fleet, made, now)
            effects += more
        else:
            effects += _record_drains(fleet, made, made.victims, now)
    if any(isinstance(effect, StartLoad) and effect.spec.pinned for effect in effects):
        for model_id in demands(fleet, now):  # What does not fit alongside it is told so now.
            spec = fleet.catalog.models.get(model_id)
            if spec is not None and (refused := _refuse_if_never(fleet, spec)) is not None:
                fleet, more = refused
                effects += more
    return _forget_demands(fleet), effects


def _unmet_demands(fleet: Fleet) -> bool:
    """Whether a model is to be loaded, or a demand to be forgotten, although no request waits."""
    return any(one.wants_load for one in fleet.operations) or any(
        view.wanted or view.state is InstanceState.QUEUED for view in fleet.instances.values()
    )


def _spare(fleet: Fleet) -> Amount | None:
    """Return the bytes that are free and that no reservation needs; None if memory is unlimited."""
    room = free_memory(fleet)
    return None if room is None else subtract(room, reserved_bytes(fleet, fleet.reservations))


def _refuse_if_never(fleet: Fleet, spec: ModelSpec) -> Outcome | None:
    """Refuse who waits for a model that cannot fit: since it was admitted, others were pinned or took memory.

    Others are models that hang, or processes that are none of modeld's; a preload waits for them to end.
    """
    never = never_fits(fleet, spec)
    refusal = never or cannot_fit_yet(fleet, spec)
    if refusal is None:
        return None
    fleet, effects = refuse_waiters(fleet, spec.id, refusal)
    fleet, more = fail_loads(fleet, spec.id, refusal)
    if never is not None:
        fleet = fleet.with_instance(replace(fleet.instance(spec.id), wanted=False))
    return without_reservation(fleet, spec.id), effects + more


def _serve_demand(fleet: Fleet, reservation: Reservation, now: Instant) -> Outcome:
    """Load what a reservation is for if its bytes are there, else see to its victims."""
    now_claimed = next((one for one in fleet.reservations if one.model_id == reservation.model_id), None)
    if now_claimed is None:
        return fleet, []
    reservation = now_claimed
    spec = fleet.catalog.models[reservation.model_id]
    if (refused := _refuse_if_never(fleet, spec)) is not None:
        return refused
    older = fleet.reservations[: fleet.reservations.index(reservation)]
    room = free_memory(fleet)
    usable = None if room is None else subtract(room, reserved_bytes(fleet, older))
    fit = fitting_size(fleet, spec, usable, reservation.placement)
    if usable is None or fit is not None:
        fleet = without_reservation(fleet, reservation.model_id)
        return (fleet, []) if fit is None else _start(fleet, spec, fit, now)
    missing = subtract(need(fleet, reservation), usable)
    if reservation.committed:
        # The budget or the estimate changed, or a victim hangs: what was evicted is not enough any more.
        enough = fits_in(pending_bytes(fleet, reservation), missing)
        return (fleet if enough else without_reservation(fleet, reservation.model_id)), []
    idle = idle_victims(fleet, spec, missing, now)
    if idle is not None:
        reservation = replace(reservation, victims=idle, committed=True)
        return _evict(with_reservation(fleet, reservation), reservation, now)
    if not fits_in(pending_bytes(fleet, reservation), missing):  # One of the victims was pinned.
        return without_reservation(fleet, reservation.model_id), []
    return _shorten_turns(fleet, reservation, spec, missing, now)


def _shorten_turns(
    fleet: Fleet, reservation: Reservation, spec: ModelSpec, missing: Amount, now: Instant
) -> Outcome:
    """When the drain takes longer than `evict_timeout`: cut what runs if allowed, else drain more models.

    More models stay closed together with the first ones, so whichever set is idle first goes.
    """
    closed = [gate_closed_since(fleet, reservation, fleet.instance(victim)) for victim in reservation.victims]
    patience = fleet.limits.backlog_time_s + fleet.limits.evict_timeout_s
    if now < max([reservation.widened_at, *closed]) + patience:
        return fleet, []
    effects: list[Effect] = []
    if fleet.limits.cut_streams:
        for victim in reservation.victims:
            fleet, cuts = cut_leases(fleet, victim, CutReason.EVICTED, _cut_off(fleet, victim, spec))
            effects += cuts
        return with_reservation(fleet, replace(reservation, widened_at=now)), effects
    others = victims_of_others(fleet, spec.id) | set(reservation.victims)
    outside = [
        eviction_candidate(fleet, view, now) for view in evictable(fleet, others, {InstanceState.READY})
    ]
    more = choose_victims(outside, missing, fleet.limits.eviction)
    if more is None:
        more = tuple(one.model_id for one in outside)
    effects += _record_drains(fleet, reservation, more, now)
    return with_reservation(
        fleet, replace(reservation, victims=(*reservation.victims, *more), widened_at=now)
    ), effects


def _cut_off(fleet: Fleet, victim: str, spec: ModelSpec) -> Problem:
    return Evicted(
        f"model {victim} had to make room for {spec.id}, and this request was not done within "
        f"{fleet.limits.evict_timeout_s:g} s (evict_timeout); send it again",
        details={"evict_timeout_s": fleet.limits.evict_timeout_s},
    ).as_problem()


def _start(fleet: Fleet, spec: ModelSpec, fit: LoadRequirement, now: Instant) -> Outcome:
    view = fleet.instance(spec.id)
    busy = sum(not view.idle for view in fleet.instances.values())
    threads = threads_for(fleet.limits.cores, spec.options.threads, busy + 1)
    view = replace(
        view,
        state=transition(view.state, InstanceState.LOADING),
        reserved=fit.amount[0],
        placement=fit.placement,
        slots=spec.options.slots,
        load_started=now,
        threads=threads,
    )
    waiters = len(fleet.waiters(spec.id))
    numbers: dict[str, float] = {
        "need_mb": fit.amount[0] / MIB,
        "held_mb": fleet.held / MIB,
        "waiters": waiters,
    }
    if fleet.limits.budget is not None:
        numbers["budget_mb"] = fleet.limits.budget / MIB
        if fleet.budget != fleet.limits.budget:
            numbers["effective_budget_mb"] = (fleet.budget or 0) / MIB
    if waiters:
        reason = f"{'1 request waits' if waiters == 1 else f'{waiters} requests wait'} for it"
    elif (asked := next(fleet.loading_for(spec.id), None)) is not None:
        reason = f"operation {asked.id} ({asked.kind}) asked for it"
    else:
        reason = "it is to be preloaded"
    if fit.placement is not None:
        reason += f"; {fit.placement.reason}"
        numbers |= {f"{name}_mb": size for name, size in in_mib(fit.placement.bytes).items()}
    key = requesting_key(fleet, spec.id)
    tell = RecordDecision(action="load", model_id=spec.id, reason=reason, numbers=numbers, key=key)
    return fleet.with_instance(view), [StartLoad(spec, threads, fit.placement), tell]


def _evict(fleet: Fleet, reservation: Reservation, now: Instant) -> Outcome:
    """Order the victims of a reservation to stop; those that stop already need no order."""
    wanted = need(fleet, reservation)[0]
    free = fleet.free or 0
    effects: list[Effect] = []
    for victim in reservation.victims:
        view = fleet.instance(victim)
        if view.state is not InstanceState.READY:
            continue
        per_minute = view.reuse_rate(now) * 60
        if fleet.limits.eviction is Eviction.LRU:
            why = f"unused for {now - view.last_used:.1f} s, longer than others"
        else:
            why = f"cheapest to lose: {view.load_s:.1f} s of loading, {per_minute:.1f} requests a minute"
        numbers = {
            "frees_mb": view.reserved / MIB,
            "need_mb": wanted / MIB,
            "free_mb": free / MIB,
            "reload_s": view.load_s,
            "uses_per_min": per_minute,
        }
        reason = f"idle, and makes room for {reservation.model_id}; {why}"
        effects.append(
            _record_victim(fleet, reservation, victim, action="evict", reason=reason, numbers=numbers)
        )
        fleet = fleet.with_instance(replace(view, state=transition(view.state, InstanceState.DRAINING)))
        fleet = replace(fleet, evictions=fleet.evictions + 1)
    return fleet, effects


def _record_drains(
    fleet: Fleet, reservation: Reservation, victims: tuple[str, ...], now: Instant
) -> list[Effect]:
    oldest = oldest_arrival(fleet, reservation.model_id)
    waited = 0.0 if oldest is None else now - oldest
    told: list[Effect] = []
    for victim in victims:
        view = fleet.instance(victim)
        if view.state is InstanceState.DRAINING:
            continue
        closes = max(0.0, gate_closed_since(fleet, reservation, view) - now)
        numbers = {
            "waited_s": waited,
            "closes_in_s": closes,
            "running": view.live_leases,
            "frees_mb": view.reserved / MIB,
        }
        reason = f"requests for {reservation.model_id} have waited {waited:.1f} s for its memory"
        told.append(
            _record_victim(fleet, reservation, victim, action="drain", reason=reason, numbers=numbers)
        )
    return told


def _record_victim(
    fleet: Fleet,
    reservation: Reservation,
    victim: str,
    *,
    action: str,
    reason: str,
    numbers: dict[str, float],
) -> RecordDecision:
    """Return what is told of a model that goes for a reservation."""
    return RecordDecision(
        action=action,
        model_id=victim,
        kind="room",
        for_model=reservation.model_id,
        key=requesting_key(fleet, reservation.model_id),
        reason=reason,
        numbers=numbers,
    )


def _forget_demands(fleet: Fleet) -> Fleet:
    return fleet.with_instance(
        *(
            replace(view, state=transition(view.state, InstanceState.STOPPED))
            for view in fleet.instances.values()
            if view.state is InstanceState.QUEUED and not fleet.is_wanted(view.model_id)
        )
    )
