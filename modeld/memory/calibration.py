# SPDX-License-Identifier: GPL-3.0-only
"""Correct a model's estimate by what its earlier loads really took. Pure.

When a worker is ready it holds everything but the buffers of the graphs, which become resident as they are
used; of those llama.cpp has told the size. So

    ratio = (held when ready + compute) / estimate

both for the layout of the KV cache that it begins with. If it ever holds more than the estimate for the most
it may take, that counts. Memory that ran out while it was loaded raises the estimate by a quarter, once.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from modeld.domain.model import DryRun, Footprint, FootprintCorrection, FootprintSource, ModelSpec

LEAST_RATIO, MOST_RATIO = 0.8, 2.0
"""What was learned stays within these: pages of a file that the kernel has taken back are no saving."""
RAISE = 1.25
"""What an estimate is multiplied by when memory ran out during a load."""
NOTABLE = 0.005
"""A change of the ratio by less changes no estimate."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a model with certain options."""

    ready: float = 1.0
    """The ratio when it became ready, at its last load."""
    peak: float = 0.0
    """The most it was seen to hold, as a part of the estimate for that."""
    raised: bool = False
    """Memory ran out during a load."""
    measured: int = 0
    """What it would hold with all buffers in use, by the last load; or the most that was seen. Bytes."""

    @property
    def ratio(self) -> float:
        """What the next estimate is multiplied by."""
        found = max(self.ready, self.peak, RAISE if self.raised else 0.0)
        return min(max(found, LEAST_RATIO), MOST_RATIO)


def after_load(learned: Calibration, scale: FootprintCorrection, held: int) -> Calibration:
    """Learn from a worker that has loaded its model and served nobody yet. `held`: bytes."""
    measured = held + scale.first.compute
    return replace(learned, ready=measured / max(scale.first.total, 1), measured=measured)


def after_measurement(learned: Calibration, scale: FootprintCorrection, held: int) -> Calibration:
    """Learn from a worker that serves. It counts only where it is more than was expected."""
    part = held / max(scale.base.total, 1)
    if part <= learned.ratio:
        return learned
    return replace(learned, peak=part, measured=max(learned.measured, held))


def with_new_peak(spec: ModelSpec) -> ModelSpec | None:
    """Return the model with the estimate for which memory did not suffice raised; None if it was before."""
    if spec.scale.ratio >= RAISE:
        return None
    base = spec.scale.base if spec.scale.base.total else spec.footprint
    return replace(spec, footprint=base.scaled(RAISE), scale=replace(spec.scale, base=base, ratio=RAISE))


def calibrated(
    spec: ModelSpec, run: DryRun | None, learned: Calibration | None, problem: str = ""
) -> ModelSpec:
    """Return a model with the best estimate there is: the dry run or else the formula, and what was learned.

    `spec` comes from a look at the folder, with the estimate of the formula.
    """
    base: Footprint = spec.footprint if run is None else run.peak
    first = base if run is None else run.before_use
    learned = learned or Calibration()
    scale = FootprintCorrection(
        source=FootprintSource.FORMULA if run is None else FootprintSource.PROBE,
        base=base,
        first=first,
        ratio=learned.ratio,
        measured=learned.measured,
        devices=() if run is None else run.devices,
        problem=problem,
    )
    return replace(spec, footprint=base.scaled(learned.ratio), scale=scale)
