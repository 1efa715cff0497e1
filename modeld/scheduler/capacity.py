# SPDX-License-Identifier: GPL-3.0-only
"""Decide whether a model fits, now or ever, and share the cores. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from modeld.domain.model import MIB, ModelSpec
from modeld.errors import DoesNotFit, MemoryTaken, ModelFailed, Problem
from modeld.memory.devices import Amount, DeviceKind, add, subtract
from modeld.memory.layer_placement import (
    DeviceSpace,
    ModelParts,
    Placement,
    fits,
    model_parts,
    place,
    placements,
)
from modeld.scheduler.state import Fleet, InstanceView

# ----------------------------------------------------------------------
# The ledger where there are GPUs: what models hold of the budget and of each device, and what is left. Pure.
#
# Without GPUs an amount has one place, that of the budget.


def places_on_devices(fleet: Fleet) -> bool:
    """Whether models are placed on devices: there are GPUs."""
    return any(device.kind is not DeviceKind.CPU for device in fleet.devices)


def bytes_of(fleet: Fleet, view: InstanceView) -> Amount:
    """Return what the ledger holds for an instance: of the budget, and of each device."""
    if not places_on_devices(fleet):
        return (view.reserved,)
    on: Mapping[str, int] = {} if view.placement is None or not view.reserved else view.placement.bytes
    return (view.reserved, *(on.get(device.name, 0) for device in fleet.devices))


def device_bytes(fleet: Fleet, views: Iterable[InstanceView]) -> Amount:
    """Return what the ledger holds for all of them."""
    total: Amount = (0,) * (1 + len(fleet.devices)) if places_on_devices(fleet) else (0,)
    for view in views:
        total = add(total, bytes_of(fleet, view))
    return total


def free_memory(fleet: Fleet) -> Amount | None:
    """Return what is free of the budget and of each device, below 0 where others took some; None: unlimited.

    The margin is kept free of the budget, and of each device.
    """
    free = fleet.free
    if free is None or not places_on_devices(fleet):
        return None if free is None else (free,)
    left = tuple(device.ceiling - fleet.limits.margin for device in fleet.devices)
    return (free, *subtract(left, device_bytes(fleet, fleet.instances.values())[1:]))


# ----------------------------------------------------------------------
# What a model needs to be loaded, now or once others have gone. Pure.
#
# Where there are no GPUs that is its footprint, of the budget. Else it is a place as well
# (`memory.layer_placement`), and
# so many bytes of each device: a model goes where it fits now; if that is nowhere, room is made at the place
# where that costs least. Layers stay with the CPU unasked only where no eviction could make room for all.


class LoadRequirement(msgspec.Struct, frozen=True, kw_only=True):
    """What a load takes, and where."""

    amount: Amount
    placement: Placement | None = None
    """None: llama.cpp's own choice."""


def load_requirement(fleet: Fleet, spec: ModelSpec, placement: Placement | None) -> LoadRequirement:
    """Return what a model takes at this place."""
    if not places_on_devices(fleet):
        return LoadRequirement(amount=(spec.footprint.total,))
    if placement is None:
        return LoadRequirement(amount=(spec.footprint.total, *(0 for _ in fleet.devices)))
    on = (placement.bytes.get(device.name, 0) for device in fleet.devices)
    return LoadRequirement(amount=(placement.total, *on), placement=placement)


def fitting_size(
    fleet: Fleet, spec: ModelSpec, room: Amount | None, prefer: Placement | None = None
) -> LoadRequirement | None:
    """Return how a model fits into this room (None: the budget is unlimited); None if it does not.

    `prefer`: the place that room was made at, if it was. Without a budget nothing is refused: what finds
    no place is left to llama.cpp.
    """
    if not places_on_devices(fleet):
        need = load_requirement(fleet, spec, None)
        return need if room is None or need.amount[0] <= room[0] else None
    if room is None:
        spaces, total = _spots(fleet, _on_devices(fleet)), None
    else:
        spaces, total = _spots(fleet, room[1:]), room[0]
    if prefer is not None and fits(prefer, spaces, total):
        return load_requirement(fleet, spec, prefer)
    parts = model_parts(spec)
    found = place(parts, spaces, spec.options, total, partly=room is None or not _whole(fleet, spec, parts))
    if found is None and room is not None:
        return None
    return load_requirement(fleet, spec, found)


def load_targets(fleet: Fleet, spec: ModelSpec) -> Sequence[LoadRequirement]:
    """Return the places at which room could be made for a model, the best first. Empty: it fits nowhere."""
    if not places_on_devices(fleet):
        return (load_requirement(fleet, spec, None),)
    parts = model_parts(spec)
    spaces, total = _emptied(fleet, spec.id)
    found = [it for it in placements(parts, spaces, spec.options, partly=False) if fits(it, spaces, total)]
    if not found:
        partly = place(parts, spaces, spec.options, total)
        found = [] if partly is None else [partly]
    return [load_requirement(fleet, spec, it) for it in found]


def fits_when_empty(fleet: Fleet, spec: ModelSpec, *, without_others: bool) -> bool:
    """Whether a model finds a place when everything goes that may; also what hangs, and what others hold."""
    spaces, total = _emptied(fleet, spec.id, without_others=without_others)
    return place(model_parts(spec), spaces, spec.options, total) is not None


def _whole(fleet: Fleet, spec: ModelSpec, parts: ModelParts) -> bool:
    """Whether all layers could be on GPUs if all went that may."""
    spaces, total = _emptied(fleet, spec.id)
    return place(parts, spaces, spec.options, total, partly=False) is not None


def _emptied(
    fleet: Fleet, model_id: str, *, without_others: bool = False
) -> tuple[tuple[DeviceSpace, ...], int | None]:
    """Return the devices' room, and that of the budget, alongside what stays whatever happens."""
    stays = [
        bytes_of(fleet, view)
        for view in fleet.instances.values()
        if view.reserved
        and view.model_id != model_id
        and (fleet.is_pinned(view.model_id) or (view.stuck is not None and not without_others))
    ]
    margin = fleet.limits.margin
    rooms: Amount = tuple(
        (device.total if without_others else device.ceiling) - margin for device in fleet.devices
    )
    for held in stays:
        rooms = subtract(rooms, held[1:])
    budget = fleet.limits.budget if without_others else fleet.budget
    total = None if budget is None else budget - margin - sum(held[0] for held in stays)
    return _spots(fleet, rooms), total


def _on_devices(fleet: Fleet) -> Amount:
    rooms: Amount = tuple(device.ceiling - fleet.limits.margin for device in fleet.devices)
    for view in fleet.instances.values():
        rooms = subtract(rooms, bytes_of(fleet, view)[1:])
    return rooms


def _spots(fleet: Fleet, rooms: Iterable[int]) -> tuple[DeviceSpace, ...]:
    return tuple(
        DeviceSpace(name=device.name, kind=device.kind, free=room)
        for device, room in zip(fleet.devices, rooms, strict=True)
    )


# ----------------------------------------------------------------------

STUCK_RETRY_S = 60.0
"""A model that hangs in a thread comes back with a restart of the daemon, if ever."""


def never_fits(fleet: Fleet, spec: ModelSpec) -> Problem | None:
    """Say why a model cannot fit even when everything that may go is gone; None if it can.

    It has to fit alongside the pinned models that are loaded, within budget less margin.
    """
    limits = fleet.limits
    if limits.budget is None or fleet.instance(spec.id).state.holds_memory:
        return None
    if places_on_devices(fleet):
        return None if fits_when_empty(fleet, spec, without_others=True) else _nowhere(fleet, spec)
    if spec.footprint.total <= (fleet.free or 0):
        return None
    pinned = {
        view.model_id: view.reserved
        for view in fleet.instances.values()
        if view.reserved and view.model_id != spec.id and fleet.is_pinned(view.model_id)
    }
    room = limits.budget - limits.margin - sum(pinned.values())
    need = spec.footprint.total
    if need <= room:
        return None
    holders = f", of which pinned models hold {_mb(sum(pinned.values()))} MiB ({', '.join(pinned)})"
    return DoesNotFit(
        f"model {spec.id} needs about {_mb(need)} MiB, and the budget is "
        f"{_mb(limits.budget)} MiB less a margin of {_mb(limits.margin)} MiB"
        f"{holders if pinned else ''}; {_unpin(need, room + sum(pinned.values()))}{_remedy(spec)}",
        details={
            "need_mb": _mb(need),
            "budget_mb": _mb(limits.budget),
            "margin_mb": _mb(limits.margin),
            "pinned_mb": _mb(sum(pinned.values())),
            "available_mb": _mb(room),
            "llama_ctx": spec.options.ctx,
            "llama_slots": spec.options.slots,
            **({"fitting_ctx": spec.fitting_ctx} if spec.fitting_ctx else {}),
        },
    ).as_problem()


def _unpin(need: int, room: int) -> str:
    """Say that a pinned model may be let go, where that helps."""
    return "let a pinned model go, " if need <= room else ""


def cannot_fit_beside_stuck(fleet: Fleet, spec: ModelSpec) -> Problem | None:
    """Say that a model fits only without memory of models that hang, which nothing can make room in.

    None if it fits alongside them, when everything else that may go is gone. That it fits without them is
    known (`never_fits`).
    """
    limits = fleet.limits
    if limits.budget is None or fleet.instance(spec.id).state.holds_memory:
        return None
    stays = {
        view.model_id: view.reserved
        for view in fleet.instances.values()
        if view.reserved and (view.stuck is not None or fleet.is_pinned(view.model_id))
    }
    stuck = [name for name in stays if fleet.instance(name).stuck is not None]
    room = limits.budget - limits.margin - sum(stays.values())
    if not stuck or spec.footprint.total <= room:
        return None
    held = sum(stays[name] for name in stuck)
    return ModelFailed(
        f"model {spec.id} needs about {_mb(spec.footprint.total)} MiB, and {_mb(held)} MiB of the budget are "
        f"held by {', '.join(stuck)}, which hangs in a thread and cannot be stopped; restart the daemon, or "
        "try again when it has come back",
        details={"need_mb": _mb(spec.footprint.total), "stuck_mb": _mb(held), "available_mb": _mb(room)},
        retry_after_s=STUCK_RETRY_S,
    ).as_problem()


def cannot_fit_yet(fleet: Fleet, spec: ModelSpec) -> Problem | None:
    """Say why a model that fits the budget does not fit for now, whoever makes room; None if it does.

    Models that hang hold memory, or processes that are none of modeld's do.
    """
    if places_on_devices(fleet):
        return _nowhere_now(fleet, spec)
    return cannot_fit_beside_stuck(fleet, spec) or cannot_fit_beside_others(fleet, spec)


def cannot_fit_beside_others(fleet: Fleet, spec: ModelSpec) -> Problem | None:
    """Say that other processes hold so much that a model does not fit, whoever else makes room."""
    budget, limits = fleet.budget, fleet.limits
    if budget is None or budget == limits.budget or fleet.instance(spec.id).state.holds_memory:
        return None
    stays = sum(
        view.reserved
        for view in fleet.instances.values()
        if view.model_id != spec.id and (view.stuck is not None or fleet.is_pinned(view.model_id))
    )
    need, room = spec.footprint.total, budget - limits.margin - stays
    if need <= room:
        return None
    margin = f", less a margin of {_mb(limits.margin)} MiB" if limits.margin else ""
    others = f" and less {_mb(stays)} MiB of models that stay" if stays else ""
    return MemoryTaken(
        f"model {spec.id} needs about {_mb(need)} MiB, and of the budget {shortage(fleet)}{margin}{others}; "
        "see what else runs on this machine, and try again when it has ended",
        details={
            "need_mb": _mb(need),
            "budget_mb": _mb(limits.budget or 0),
            "effective_budget_mb": budget // MIB,
            "available_mb": max(0, room) // MIB,
        },
    ).as_problem()


def _nowhere(fleet: Fleet, spec: ModelSpec) -> Problem:
    """Say that no GPU, no split and no number of layers would do, or that the GPU it is to go on is none."""
    limits = fleet.limits
    gpus = [device.name for device in fleet.devices if device.kind is not DeviceKind.CPU]
    if spec.options.main_gpu is not None and spec.options.main_gpu >= len(gpus):
        why = (
            f"llama_main_gpu is {spec.options.main_gpu}, and of the GPUs {', '.join(gpus)} the last one is "
            f"{len(gpus) - 1}, as they are counted from 0; set it to one of these, or to auto"
        )
    else:
        why = (
            f"{_parts(spec)}. The devices have "
            f"{_have(fleet, {it.name: it.total for it in fleet.devices})}, the budget is "
            f"{_mb(limits.budget or 0)} MiB, {_mb(limits.margin)} MiB of each are to stay free, and what is "
            f"pinned stays; {_remedy(spec)}"
        )
    return DoesNotFit(
        f"model {spec.id} finds no place on the devices: {why}",
        details={
            "need_mb": _mb(spec.footprint.total),
            "budget_mb": _mb(limits.budget or 0),
            "margin_mb": _mb(limits.margin),
            "llama_ctx": spec.options.ctx,
            "llama_slots": spec.options.slots,
        },
    ).as_problem()


def _nowhere_now(fleet: Fleet, spec: ModelSpec) -> Problem | None:
    if fleet.budget is None or fleet.instance(spec.id).state.holds_memory:
        return None
    if fits_when_empty(fleet, spec, without_others=False):
        return None
    return MemoryTaken(
        f"model {spec.id} finds no place on the devices for now: {_parts(spec)}. Others leave "
        f"{_have(fleet, {it.name: it.ceiling for it in fleet.devices})} to models, of which those that hang "
        "or are pinned keep theirs; see what else runs on this machine, and try again when it has ended",
        details={
            "need_mb": _mb(spec.footprint.total),
            "budget_mb": _mb(fleet.limits.budget or 0),
            "effective_budget_mb": fleet.budget // MIB,
        },
    ).as_problem()


def _parts(spec: ModelSpec) -> str:
    parts = model_parts(spec)
    gpu = parts.layers * parts.layer + parts.output + parts.compute
    text = f"it needs about {_mb(gpu)} MiB on one GPU and {_mb(parts.host)} MiB of the machine's memory"
    if parts.layers:
        each = f"{_mb(parts.layer)} MiB for each of {parts.layers} layers"
        text += f", or {each} and {_mb(parts.compute)} MiB a GPU"
    return text


def _have(fleet: Fleet, sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{sizes[it.name] // MIB} MiB ({it.name})" for it in fleet.devices)


def shortage(fleet: Fleet) -> str | None:
    """Say why less than the budget can be given out, as part of a sentence; None: all of it can."""
    budget, limits = fleet.budget, fleet.limits
    if budget is None or limits.budget is None or budget >= limits.budget:
        return None
    held = " and ".join(
        f"{_mb(device.total - device.ceiling)} of the {_mb(device.total)} MiB of {device.name}"
        for device in fleet.devices
        if device.total > device.ceiling
    )
    return (
        f"{_mb(limits.budget)} MiB are set, but other processes hold {held or 'all of the devices'}, "
        f"which leaves {budget // MIB} MiB to models"
    )


def _remedy(spec: ModelSpec) -> str:
    """Say what makes it fit. A context that the config names is never made smaller unasked."""
    if spec.sizing:
        slots = spec.options.slots
        size = f"{spec.options.ctx} cells and {slots} slot{'' if slots == 1 else 's'}"
        return f"auto chose {size} for it, {spec.sizing}; raise vram_budget_mb, or take a smaller model"
    if spec.fitting_ctx:
        fitting = f"lower llama_ctx from {spec.options.ctx} to {spec.fitting_ctx} or less (or set it to auto)"
        return f"raise vram_budget_mb, {fitting}, or take a smaller model"
    return "raise vram_budget_mb, lower llama_ctx, or take a smaller model"


def threads_for(cores: int, wanted: int, busy: int) -> int:
    """Return the threads an instance gets while `busy` instances decode.

    Two teams of threads on the same cores wait for each other at llama.cpp's barriers and run
    several times slower (measured, docs/performance.md), so the cores are divided; `wanted` is
    the operator's upper bound.
    """
    return max(1, min(wanted, cores // max(1, busy)))


def _mb(size: int) -> int:
    return -(-size // MIB)
