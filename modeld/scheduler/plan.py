# SPDX-License-Identifier: GPL-3.0-only
"""Predict what loading a model now would do: fit, victims, reasons, and time.

Nothing is decided again here. The scheduler's own `step` is played on a copy of the fleet: an operation
asks for the model, and time passes until somebody goes for it. So a plan is what would happen, as
long as nobody comes or leaves meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState
from modeld.domain.model import MIB, ModelSpec
from modeld.memory.layer_placement import Placement, in_mib
from modeld.scheduler import inputs
from modeld.scheduler.deadlines import next_deadline
from modeld.scheduler.effects import RefuseOperation
from modeld.scheduler.eta import seconds_until_ready
from modeld.scheduler.eviction import assumed_load_s
from modeld.scheduler.operations import MOST_RUNNING
from modeld.scheduler.queue_order import drain_start
from modeld.scheduler.state import Fleet, InstanceView, Instant, Reservation
from modeld.scheduler.step import step

_OPERATION = ""
"""Id of the operation that is played; no other has it."""
_MOST_STEPS = 50
"""Moments that are looked at until somebody goes for the model."""


class PlannedVictim(msgspec.Struct, frozen=True, kw_only=True):
    """A model that would go."""

    model_id: str
    mb: float
    """What that frees."""
    why: str


class PlanFootprint(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes, by cause."""

    weights_mb: float
    kv_mb: float
    compute_mb: float
    overhead_mb: float


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a plan. Field names are the JSON keys of the native API; `*_mb` is MiB."""

    model: str
    """Id of the model."""
    fits: bool
    """Whether it can be loaded at all."""
    verdict: str
    """All of it in a sentence."""
    needs_mb: float
    free_mb: float | None
    """Of the budget, less the margin and what is held; null: the budget is unlimited."""
    budget_mb: float
    """0 is unlimited."""
    effective_budget_mb: float | None = None
    """Of the budget, what can be given out while other processes hold memory; null: it is unlimited."""
    margin_mb: float
    devices_mb: Mapping[str, float] = {}
    """What it would take of which device, where there are GPUs."""
    placement: str | None = None
    """Why there."""
    evicts: tuple[PlannedVictim, ...] = ()
    """Idle models that would go for it at once."""
    drains: tuple[PlannedVictim, ...] = ()
    """Busy models that would go once their requests have ended."""
    wait_ms: int = 0
    """Until its load begins, by what was measured."""
    load_ms: int = 0
    """What its load takes: what the last one did, or a guess from its size."""
    kv_cells: int
    slots: int
    footprint: PlanFootprint


def plan(fleet: Fleet, spec: ModelSpec, now: Instant) -> LoadPlan:
    """Say what would happen if this model were loaded now, perhaps with other options than it has.

    An instance that was loaded with other options counts as gone: it makes way for the new one.
    """
    known = fleet.catalog.models.get(spec.id)
    again = known is not None and known.options != spec.options
    models = {**fleet.catalog.models, spec.id: spec}
    fleet = replace(fleet, catalog=replace(fleet.catalog, models=models))
    view = fleet.instance(spec.id)
    if again and view.state.holds_memory:
        fleet = fleet.with_instance(
            InstanceView(
                model_id=spec.id, load_s=view.load_s, service_s=view.service_s, failures=view.failures
            )
        )
    before = fleet
    fleet = replace(fleet, operations=fleet.operations[-(MOST_RUNNING - 1) :])
    fleet, effects = step(fleet, inputs.LoadRequested(operation=_OPERATION, model_id=spec.id), now)
    problem = next((it.problem for it in effects if isinstance(it, RefuseOperation)), None)
    if problem is not None:
        return _explained(before, spec, fits=False, verdict=problem.message)
    fleet, later = _wait_for_victim(fleet, spec, now)
    told = _verdict(before, fleet, spec, now, later)
    place = _place_of(fleet, spec)
    if place is None:
        return told
    return replace(told, needs_mb=place.total / MIB, devices_mb=in_mib(place.bytes), placement=place.reason)


def _wait_for_victim(fleet: Fleet, spec: ModelSpec, now: Instant) -> tuple[Fleet, Instant]:
    """Let time pass until the model loads or has a reservation, or busy models would have been asked."""
    at = now
    for _ in range(_MOST_STEPS):
        asks = drain_start(fleet, spec.id)
        if asks is None or at >= asks or _is_settled(fleet, spec):
            break
        due = next_deadline(fleet, at)
        at = min(asks, at + 0.1 if due is None else max(at, due))
        fleet, _ = step(fleet, inputs.Tick(), at)
    return fleet, at


def _place_of(fleet: Fleet, spec: ModelSpec) -> Placement | None:
    """Return where a model is, or where room is made for it."""
    reservation = _reservation_of(fleet, spec)
    return fleet.instance(spec.id).placement if reservation is None else reservation.placement


def _is_settled(fleet: Fleet, spec: ModelSpec) -> bool:
    return fleet.instance(spec.id).state.holds_memory or _reservation_of(fleet, spec) is not None


def _reservation_of(fleet: Fleet, spec: ModelSpec) -> Reservation | None:
    return next((reservation for reservation in fleet.reservations if reservation.model_id == spec.id), None)


def _verdict(before: Fleet, fleet: Fleet, spec: ModelSpec, now: Instant, later: Instant) -> LoadPlan:
    view = fleet.instance(spec.id)
    held = before.instance(spec.id).state
    if view.state is InstanceState.READY:
        return _explained(before, spec, fits=True, verdict=f"{spec.id} is loaded and takes requests")
    load_s = view.load_s or _guessed_load_s(fleet, spec)
    if view.state is InstanceState.LOADING and held is InstanceState.LOADING:
        rest = max(0.0, load_s - (now - view.load_started))
        verdict = f"{spec.id} is being loaded already; {_ready(rest, view)}"
        return _explained(before, spec, fits=True, verdict=verdict, load_s=rest)
    if view.state is InstanceState.LOADING and later == now:
        free = "" if before.free is None else f" ({_mb(before.free)} MiB)"
        verdict = f"{_needs(spec)} in what is free{free}; {_ready(load_s, view)}"
        return _explained(before, spec, fits=True, verdict=verdict, load_s=load_s)
    reservation = _reservation_of(fleet, spec)
    wait_s = later - now + max(0.0, seconds_until_ready(fleet, spec.id, later) - view.load_s)
    going = [before.instance(victim) for victim in reservation.victims] if reservation is not None else []
    unmeasured = any(not one.idle and one.service_s is None for one in going)
    idle = [_departure(one, now) for one in going if one.idle]
    busy = [_departure(one, now) for one in going if not one.idle]
    return _explained(
        before,
        spec,
        fits=True,
        verdict=f"{_needs(spec)} {_after(fleet, spec, idle, busy)}; "
        + _ready(wait_s + load_s, view, unmeasured=unmeasured),
        evicts=idle,
        drains=busy,
        wait_s=wait_s,
        load_s=load_s,
    )


def _guessed_load_s(fleet: Fleet, spec: ModelSpec) -> float:
    """Return what a first load may take: at the pace of the others' last loads, if there were any."""
    models = fleet.catalog.models
    paces = [
        (view.load_s, models[view.model_id].footprint.total)
        for view in fleet.instances.values()
        if view.load_s and view.model_id in models
    ]
    if not paces:
        return assumed_load_s(spec.footprint.total)
    size = max(1, sum(bytes_loaded for _, bytes_loaded in paces))
    return sum(seconds for seconds, _ in paces) * spec.footprint.total / size


def _after(fleet: Fleet, spec: ModelSpec, idle: list[PlannedVictim], busy: list[PlannedVictim]) -> str:
    parts: list[str] = []
    if idle:
        parts.append(f"after evicting {_names(idle)}")
    if busy:
        parts.append(f"once {_names(busy)} had its turn")
    if parts:
        return " and ".join(parts)
    if fleet.instance(spec.id).state is InstanceState.DRAINING:
        return "once its present instance is gone"
    others = ", ".join(
        reservation.model_id for reservation in fleet.reservations if reservation.model_id != spec.id
    )
    if others:
        return f"after {others}, for which room is being made before"
    return "as soon as what is being loaded or unloaded lets it"


def _names(going: Iterable[PlannedVictim]) -> str:
    return ", ".join(f"{one.model_id} ({one.why}, {one.mb:.0f} MiB)" for one in going)


def _departure(view: InstanceView, now: Instant) -> PlannedVictim:
    if view.idle:
        why = f"idle for {_seconds(now - view.last_used)}"
    else:
        count = len(view.leases)
        why = f"{count} request{'' if count == 1 else 's'} hold{'s' if count == 1 else ''} it"
    return PlannedVictim(model_id=view.model_id, mb=view.reserved / MIB, why=why)


def _needs(spec: ModelSpec) -> str:
    return f"{spec.id} needs {_mb(spec.footprint.total)} MiB and fits"


def _ready(seconds: float, view: InstanceView, *, unmeasured: bool = False) -> str:
    """Say when a model is ready, and how sure that is."""
    if unmeasured:
        return f"ready after {_seconds(seconds)} and what is left of those requests, which nobody knows"
    guess = "" if view.load_s else " (it was never loaded, so that is a guess from its size)"
    return f"ready in about {_seconds(seconds)}{guess}"


def _seconds(seconds: float) -> str:
    seconds = max(0.1, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _mb(size: int) -> int:
    return round(size / MIB)


def _explained(
    fleet: Fleet,
    spec: ModelSpec,
    *,
    fits: bool,
    verdict: str,
    evicts: Iterable[PlannedVictim] = (),
    drains: Iterable[PlannedVictim] = (),
    wait_s: float = 0.0,
    load_s: float = 0.0,
) -> LoadPlan:
    footprint = spec.footprint
    return LoadPlan(
        model=spec.id,
        fits=fits,
        verdict=verdict,
        needs_mb=footprint.total / MIB,
        free_mb=None if fleet.free is None else max(0, fleet.free) / MIB,
        budget_mb=(fleet.limits.budget or 0) / MIB,
        effective_budget_mb=None if fleet.budget is None else fleet.budget / MIB,
        margin_mb=fleet.limits.margin / MIB,
        evicts=tuple(evicts),
        drains=tuple(drains),
        wait_ms=round(wait_s * 1000),
        load_ms=round(load_s * 1000),
        kv_cells=spec.options.ctx,
        slots=spec.options.slots,
        footprint=PlanFootprint(
            weights_mb=footprint.weights / MIB,
            kv_mb=footprint.kv / MIB,
            compute_mb=footprint.compute / MIB,
            overhead_mb=footprint.overhead / MIB,
        ),
    )
