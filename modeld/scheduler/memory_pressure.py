# SPDX-License-Identifier: GPL-3.0-only
"""React when other processes take memory of the budget. Pure.

New loads keep below what is left, at once (`Fleet.budget`). What is loaded stays and serves; only when
all of the last looks at the devices left less than the models hold, idle ones give way: those whose loss is
expected to cost least, never pinned ones. Nobody is cut for it.
"""

from __future__ import annotations

from msgspec.structs import replace

from modeld.domain.instance_state import InstanceState, transition
from modeld.domain.model import MIB
from modeld.memory.devices import Amount, DeviceLimit, combined, is_zero, subtract
from modeld.scheduler.capacity import device_bytes, places_on_devices, shortage
from modeld.scheduler.effects import Effect, Outcome, RecordDecision
from modeld.scheduler.eviction import choose_victims, evictable, eviction_candidate
from modeld.scheduler.reservations import victims_of_others
from modeld.scheduler.state import Fleet, Instant

NOTABLE = 1 / 32
"""A budget that changes by less of what is set is told by `/status` only, not as a decision."""


def apply_device_readings(fleet: Fleet, devices: tuple[DeviceLimit, ...]) -> Outcome:
    """Take over what the devices leave, and tell where that changes the budget by much."""
    fleet = replace(fleet, devices=devices)
    limit, budget = fleet.limits.budget, fleet.budget
    if limit is None or budget is None:
        return fleet, []
    told = limit if fleet.reported_budget is None else fleet.reported_budget
    back = budget == limit
    if budget == told or (abs(budget - told) < limit * NOTABLE and not back):
        return fleet, []
    reason = f"all {limit // MIB} MiB that are set can be given out again" if back else shortage(fleet) or ""
    numbers = {"budget_mb": limit / MIB, "effective_budget_mb": budget / MIB, "held_mb": fleet.held / MIB}
    tell = RecordDecision(action="budget", model_id="", reason=reason, numbers=numbers)
    return replace(fleet, reported_budget=None if back else budget), [tell]


def evict_for_foreign_memory(fleet: Fleet, now: Instant) -> Outcome:
    """Rule 6: unload idle models that are too large for what others leave, once that is certain.

    If all that are idle are not enough, all of them go. One that somebody waits for stays.
    """
    effects: list[Effect] = []
    missing = _too_much(fleet)
    if missing is None or is_zero(missing):
        return fleet, effects
    idle = [
        eviction_candidate(fleet, view, now)
        for view in evictable(fleet, victims_of_others(fleet), {InstanceState.READY})
        if view.idle and not view.stopping and not fleet.is_wanted(view.model_id)
    ]
    chosen = choose_victims(idle, missing, fleet.limits.eviction)
    for model_id in tuple(one.model_id for one in idle) if chosen is None else chosen:
        view = fleet.instance(model_id)
        effects.append(
            RecordDecision(
                action="unload",
                model_id=model_id,
                kind="foreign",
                reason=f"idle, and {_why(fleet, missing)}",
                numbers={"frees_mb": view.reserved / MIB, "held_mb": fleet.held / MIB},
            )
        )
        fleet = fleet.with_instance(replace(view, state=transition(view.state, InstanceState.DRAINING)))
    return fleet, effects


def _why(fleet: Fleet, missing: Amount) -> str:
    """Say what there is too little of: the budget, or only some devices while all of the budget is there."""
    told = shortage(fleet)
    if told is not None:
        return f"{told}, less than is loaded"
    tight = " and ".join(
        f"{(device.certain or 0) // MIB} MiB of {device.name}"
        for device, lacks in zip(fleet.devices, missing[1:], strict=False)
        if lacks > 0
    )
    return f"other processes leave only {tight} to models, less than is loaded there"


def _too_much(fleet: Fleet) -> Amount | None:
    """Return by how many bytes models hold more than all of the last looks left, without those that go.

    None: there is no budget, or not all devices were looked at often enough.
    """
    limit, margin = fleet.limits.budget, fleet.limits.margin
    certain = [device.certain for device in fleet.devices if device.certain is not None]
    if limit is None or not certain or len(certain) < len(fleet.devices):
        return None
    left = min(limit, combined(fleet.devices, certain))
    staying = (view for view in fleet.instances.values() if view.state is not InstanceState.DRAINING)
    stays = device_bytes(fleet, staying)
    rooms = (left, *certain) if places_on_devices(fleet) else (left,)
    return subtract(stays, tuple(room - margin for room in rooms))
