# SPDX-License-Identifier: GPL-3.0-only
"""Assign a model's layers to devices. Pure; docs/devices.md explains the rule to operators.

llama.cpp counts the output as one more layer, the last. Of `n_gpu_layers` layers, counted from the end, each
GPU gets a run in the order of the devices, in proportion to `tensor_split`; the others, and the table of the
tokens, stay with the CPU (llama-model.cpp, `load_tensors`). Whole numbers as shares give each GPU exactly so
many layers. Every GPU that has any also has a compute buffer, about as large as that of a lone one.

The choice:
    (1) one GPU that holds it all: the one with the most free, so that models decode alongside each other
    (2) all layers over several GPUs, in proportion to what each has free
    (3) as many layers as the GPUs hold, and the rest with the CPU; where the caller allows it
    (4) all with the CPU, where there is no GPU, or the operator wants it so

What the operator sets narrows it: a number of layers, a GPU, or the shares.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import msgspec

from modeld.domain.model import MIB, LoadOptions, ModelSpec
from modeld.memory.devices import DeviceKind

CPU = "CPU"


class ModelParts(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is made of, bytes."""

    layers: int
    """Without the output."""
    layer: int
    """Weights and KV cells of one layer on a GPU."""
    output: int = 0
    compute: int = 0
    """Buffers of the graphs, on each GPU that has layers; with the CPU where it has any."""
    host: int = 0
    """What the CPU has even when all layers are on GPUs: the process, and the table of the tokens."""
    host_layer: int = 0
    """One layer with the CPU: its weights may be there twice, rearranged."""
    alone: int = 0
    """All of it with the CPU."""


class DeviceSpace(msgspec.Struct, frozen=True, kw_only=True):
    """A device, and the bytes that are free for a model there."""

    name: str
    kind: DeviceKind
    free: int


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model goes, in llama.cpp's words, and what it takes there."""

    gpu_layers: int = 0
    """`n_gpu_layers`: the output counts as one."""
    main_gpu: int | None = None
    """The one GPU that has them all, by its place among the GPUs; None: several have, or none."""
    split: tuple[int, ...] = ()
    """`tensor_split`: how many layers each GPU has; empty for one GPU, or none."""
    bytes: Mapping[str, int] = {}
    """By device; one that uses the machine's memory has them there, too."""
    total: int = 0
    reason: str = ""


def in_mib(sizes: Mapping[str, int]) -> Mapping[str, float]:
    """Return bytes by device in MiB."""
    return {name: size / MIB for name, size in sizes.items()}


def model_parts(spec: ModelSpec) -> ModelParts:
    """Return what a model is made of, by its dry run if there was one, else by formula; and what was learned.

    Layers are taken to be of one size. Of a dry run that had layers on GPUs these are split up; a dry run on
    CPUs alone says nothing of GPUs but the size of the graphs.
    """
    facts, footprint, scale = spec.facts, spec.footprint, spec.scale
    if facts is None or facts.layers < 1:
        weights = footprint.weights + footprint.kv
        return ModelParts(
            layers=0,
            layer=0,
            output=weights,
            compute=footprint.compute,
            host=footprint.overhead,
            host_layer=weights,
            alone=footprint.total,
        )
    layers = facts.layers
    on_gpus = [use for use in scale.devices if use.device != CPU]
    ratio = scale.ratio
    output = round(facts.output_bytes * ratio)
    if on_gpus:
        weights = round(sum(use.weights + use.kv for use in on_gpus) * ratio)
        compute = round(max(use.compute for use in on_gpus) * ratio)
        on_cpu = next((use for use in scale.devices if use.device == CPU), None)
        held = 0 if on_cpu is None else on_cpu.weights + on_cpu.kv + on_cpu.compute
        host = round(held * ratio) + footprint.overhead
    else:
        own = round((facts.weights_bytes + sum(it.bytes for it in spec.options.lora)) * ratio)
        weights, compute = own + footprint.kv, footprint.compute
        host = output + footprint.overhead  # The table of the tokens is about as large as the output.
    on_host = max(footprint.weights - output, 0) + footprint.kv
    return ModelParts(
        layers=layers,
        layer=-(-max(weights - output, 0) // layers),
        output=output,
        compute=compute,
        host=host,
        host_layer=-(-on_host // layers),
        alone=footprint.total,
    )


def place(
    parts: ModelParts,
    spaces: Sequence[DeviceSpace],
    options: LoadOptions,
    total: int | None,
    *,
    partly: bool = True,
) -> Placement | None:
    """Return where a model goes; None if it does not fit anywhere.

    `device_spaces`: the devices in llama.cpp's order. `total`: what it may take on all of them together
    (None: that does not matter). `partly`: layers may stay with the CPU although the operator did not ask for
    it.
    """
    for one in placements(parts, spaces, options, partly=partly):
        if fits(one, spaces, total):
            return one
    return None


def fits(placement: Placement, spaces: Sequence[DeviceSpace], total: int | None) -> bool:
    """Whether each device, and all together, have room for it. A device that nobody knows does."""
    free = {space.name: space.free for space in spaces}
    return (total is None or placement.total <= total) and all(
        size <= free.get(name, size) for name, size in placement.bytes.items()
    )


def placements(
    parts: ModelParts, spaces: Sequence[DeviceSpace], options: LoadOptions, *, partly: bool = True
) -> Iterator[Placement]:
    """Yield what could be done with a model, the best first; the CPU's room is for the caller to look at."""
    gpus = [space for space in spaces if space.kind is not DeviceKind.CPU]
    most = parts.layers + 1
    wanted = most if options.gpu_layers is None else min(options.gpu_layers, most)
    if options.main_gpu is not None and 0 < len(gpus) <= options.main_gpu and not _shares(options, gpus):
        return  # There is no such GPU.
    if not gpus or wanted == 0:  # (4)
        yield _placed(parts, spaces, [0] * len(gpus), "with the CPU")
        return
    yield from _with(parts, spaces, gpus, options, wanted)
    if partly and options.gpu_layers is None:  # (3)
        for fewer in range(wanted - 1, 0, -1):
            yield from _with(parts, spaces, gpus, options, fewer)
        yield _placed(parts, spaces, [0] * len(gpus), "with the CPU: not even one layer fits a GPU")


def _with(
    parts: ModelParts,
    spaces: Sequence[DeviceSpace],
    gpus: Sequence[DeviceSpace],
    options: LoadOptions,
    wanted: int,
) -> Iterator[Placement]:
    """Yield the ways to have so many layers on GPUs."""
    counts = [0] * len(gpus)
    if shares := _shares(options, gpus):
        yield _placed(parts, spaces, _by_shares(shares, wanted), "split as llama_tensor_split says")
        return
    alone = sorted(range(len(gpus)), key=lambda place: (-gpus[place].free, place))
    if options.main_gpu is not None:
        alone = [options.main_gpu]
    for place in alone:  # (1)
        need = _on_gpu(parts, wanted, has_output=True)
        if need <= gpus[place].free:
            why = "as llama_main_gpu says" if options.main_gpu is not None else "the GPU with the most free"
            yield _placed(parts, spaces, [*counts[:place], wanted, *counts[place + 1 :]], why)
    if options.main_gpu is None and len(gpus) > 1:  # (2)
        for last in range(len(gpus) - 1, 0, -1):
            found = _by_room(parts, [gpu.free for gpu in gpus[: last + 1]], wanted)
            if found is not None:
                split = [*found, *counts[last + 1 :]]
                yield _placed(parts, spaces, split, "split over GPUs by what they have free: no one holds it")


def _shares(options: LoadOptions, gpus: Sequence[DeviceSpace]) -> list[float]:
    """Return the operator's shares, one a GPU; empty where these GPUs have none."""
    shares = [*options.tensor_split, *[0.0] * len(gpus)][: len(gpus)]
    return shares if any(shares) else []


def _by_room(parts: ModelParts, free: Sequence[int], wanted: int) -> list[int] | None:
    """Return layers for each GPU, in proportion to its room; the last has the output. None: too little."""
    rooms = [room - parts.compute for room in free]
    rooms[-1] -= parts.output
    if rooms[-1] < 0:
        return None
    layers = wanted - 1
    most = [0 if room < 0 else room // parts.layer if parts.layer else layers for room in rooms]
    have = sum(most)
    if have < layers:
        return None
    shares = [layers * one // have if have else 0 for one in most]
    rest = sorted(range(len(most)), key=lambda place: (-(layers * most[place] % max(1, have)), place))
    for place in rest[: layers - sum(shares)]:
        shares[place] += 1
    shares[-1] += 1
    return shares


def _by_shares(shares: Sequence[float], wanted: int) -> list[int]:
    """Return how many of `wanted` layers each GPU gets from llama.cpp for such a `tensor_split`."""
    ends = [end / sum(shares) for end in accumulate(shares)]
    counts = [0] * len(shares)
    for layer in range(wanted):
        counts[min(bisect_right(ends, layer / wanted), len(shares) - 1)] += 1
    return counts


def _on_gpu(parts: ModelParts, layers: int, *, has_output: bool) -> int:
    if not layers:
        return 0
    own = parts.output + (layers - 1) * parts.layer if has_output else layers * parts.layer
    return own + parts.compute


def _placed(
    parts: ModelParts, spaces: Sequence[DeviceSpace], counts: Sequence[int], reason: str
) -> Placement:
    gpus = [space for space in spaces if space.kind is not DeviceKind.CPU]
    used = [place for place, count in enumerate(counts) if count]
    on_gpus = sum(counts)
    held = {gpus[place].name: _on_gpu(parts, counts[place], has_output=place == used[-1]) for place in used}
    stay = parts.layers + 1 - on_gpus
    alongside = parts.host + (stay * parts.host_layer + parts.compute if stay else 0)
    host = alongside if used else parts.alone
    total = host + sum(held.values())
    shared = sum(held[gpus[place].name] for place in used if gpus[place].kind is DeviceKind.IGPU)
    layers = f"{on_gpus} of {parts.layers + 1} layers, " if used and stay else ""
    return Placement(
        gpu_layers=on_gpus,
        main_gpu=used[0] if len(used) == 1 else None,
        split=tuple(counts) if len(used) > 1 else (),
        bytes={CPU: host + shared, **held},
        total=total,
        reason=layers + reason,
    )
