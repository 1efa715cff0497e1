# SPDX-License-Identifier: GPL-3.0-only
"""The memory that models could have with nothing loaded: of the budget and of each device. Pure.

Sizes that are `auto` follow from it (`sizing`), so what is loaded or free at the moment is no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from modeld.domain.model import LoadOptions, ModelSpec
from modeld.memory.devices import DeviceKind
from modeld.memory.layer_placement import DeviceSpace, model_parts, place

Fits = Callable[[LoadOptions, int], bool]
"""Whether a model of these options fits a part of what there is: all of it (1), a half (2), and so on."""


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes for models."""

    total: int | None = None
    """On all devices together; None: nobody knows."""
    device_spaces: tuple[DeviceSpace, ...] = ()
    """By device, in llama.cpp's order; empty where there are no GPUs: then the total says it all."""

    def less(self, specs: Sequence[ModelSpec]) -> Capacity:
        """Return what these leave, each where it would be put if it came in this order."""
        left = self
        for spec in specs:
            left = left._less(spec)
        return left

    def part(self, parts: int) -> Capacity:
        """Return one of so many equal parts."""
        return Capacity(
            total=None if self.total is None else self.total // parts,
            device_spaces=tuple(replace(spot, free=spot.free // parts) for spot in self.device_spaces),
        )

    def fits(self, spec_with: Callable[[LoadOptions], ModelSpec]) -> tuple[Fits, ...]:
        """Return what to ask of a model's size alongside its total, the better first.

        (1) All its layers, or as many as its settings say, are on GPUs.
        (2) The GPUs and the machine hold it together.
        """
        if not self.device_spaces:
            return ()

        def held(options: LoadOptions, parts: int, *, partly: bool) -> bool:
            spec = spec_with(options)
            return (
                place(model_parts(spec), self.part(parts).device_spaces, options, None, partly=partly)
                is not None
            )

        return (
            lambda options, parts: held(options, parts, partly=False),
            lambda options, parts: held(options, parts, partly=True),
        )

    def _less(self, spec: ModelSpec) -> Capacity:
        total = None if self.total is None else max(0, self.total - spec.footprint.total)
        found = (
            place(model_parts(spec), self.device_spaces, spec.options, None) if self.device_spaces else None
        )
        taken: Mapping[str, int] = {} if found is None else found.bytes
        spots = (
            replace(spot, free=max(0, spot.free - taken.get(spot.name, 0))) for spot in self.device_spaces
        )
        return Capacity(total=total, device_spaces=tuple(spots))


def capacity_of(total: int | None, devices: Sequence[DeviceSpace]) -> Capacity:
    """Return the space of a budget and of devices; without GPUs among them the budget is all of it."""
    has_gpus = any(device.kind is not DeviceKind.CPU for device in devices)
    return Capacity(total=total, device_spaces=tuple(devices) if has_gpus else ())
