# SPDX-License-Identifier: GPL-3.0-only
"""Does it fit, and how are the cores shared."""

from __future__ import annotations

from collections.abc import Mapping

from modeld.core.devices import DeviceKind
from modeld.core.fleet import Fleet
from modeld.core.ledger import places
from modeld.core.models import MIB, ModelSpec
from modeld.core.needs import fits_empty
from modeld.core.spread import parts_of
from modeld.errors import DoesNotFit, MemoryTaken, ModelFailed, Problem

STUCK_RETRY_S = 60.0
"""A model that hangs in a thread comes back with a restart of the daemon, if ever."""


def never_fits(fleet: Fleet, spec: ModelSpec) -> Problem | None:
    """Say why a model cannot fit even when everything that may go is gone; None if it can.

    It has to fit beside the pinned models that are loaded, within budget less margin.
    """
    limits = fleet.limits
    if limits.budget is None or fleet.instance(spec.id).state.holds_memory:
        return None
    if places(fleet):
        return None if fits_empty(fleet, spec, without_others=True) else _nowhere(fleet, spec)
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


def fits_not_beside_stuck(fleet: Fleet, spec: ModelSpec) -> Problem | None:
    """Say that a model fits only without memory of models that hang, which nothing can make room in.

    None if it fits beside them, when everything else that may go is gone. That it fits without them is
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


def fits_not_now(fleet: Fleet, spec: ModelSpec) -> Problem | None:
    """Say why a model that fits the budget does not fit for now, whoever makes room; None if it does.

    Models that hang hold memory, or processes that are none of modeld's do.
    """
    if places(fleet):
        return _nowhere_now(fleet, spec)
    return fits_not_beside_stuck(fleet, spec) or fits_not_beside_others(fleet, spec)


def fits_not_beside_others(fleet: Fleet, spec: ModelSpec) -> Problem | None:
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
    beside = f" and less {_mb(stays)} MiB of models that stay" if stays else ""
    return MemoryTaken(
        f"model {spec.id} needs about {_mb(need)} MiB, and of the budget {shortage(fleet)}{margin}{beside}; "
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
    if fits_empty(fleet, spec, without_others=False):
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
    parts = parts_of(spec)
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


def share_cores(cores: int, wanted: int, busy: int) -> int:
    """Return the threads an instance gets while `busy` instances decode.

    Two teams of threads on the same cores wait for each other at llama.cpp's barriers and run
    several times slower (measured, docs/performance.md), so the cores are divided; `wanted` is
    the operator's upper bound.
    """
    return max(1, min(wanted, cores // max(1, busy)))


def _mb(size: int) -> int:
    return -(-size // MIB)
