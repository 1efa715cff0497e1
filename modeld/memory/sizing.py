# SPDX-License-Identifier: GPL-3.0-only
"""Choose KV cells and slots where a model's config says `auto`. Pure.

Nothing here knows of load: the same file, config and budget always give the same size, so neither a
client's options nor other models' comings and goings make a loaded model another one.

Sizes are tried in order, each with a larger footprint than the one before:
- cells (`llama_ctx: auto`) in groups of 256, up to the trained context for each slot and to `MOST_CELLS`;
- slots (`llama_slots: auto`) one for `CELLS_A_SLOT` cells, or for the trained context if that is less, up to
  `MOST_SLOTS`.

The choice:
  (1) The largest that fits the room, but not more than the default size.
  (2) Larger ones as far as they leave half of the room: another model should fit alongside it.
  (3) Not even the least fits: it stays the least, and placement refuses it with the numbers.

Where there are GPUs, a size fits if they hold all its layers, too. Where they do not even hold those of a
modest size (`CELLS_A_SLOT` for each slot), it fits if GPUs and machine hold it together: slow, but of use.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from modeld.domain.model import MIB, Footprint, LoadOptions, ModelFacts
from modeld.memory.space import Fits

CELL_GROUP = 256
"""llama.cpp rounds a context up to whole groups of cells."""
LEAST_A_SLOT = 16
"""Cells; fewer make no sentence."""
CELLS_A_SLOT = 2048
MOST_SLOTS = 8
"""More make each stream slower than people read, on the machines that one daemon is for."""
MOST_CELLS = 32768
"""Attention reads what is resident, and without flash attention the scores of a whole ubatch grow with it."""

FootprintOf = Callable[[LoadOptions], Footprint]


class AutoSizes(msgspec.Struct, frozen=True, kw_only=True):
    """What the config leaves to be chosen."""

    ctx: bool = False
    slots: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return self.ctx or self.slots


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The options with everything chosen, what they take, and why it is these: a sentence part."""

    options: LoadOptions
    footprint: Footprint
    reason: str


def choose_size(
    facts: ModelFacts,
    options: LoadOptions,
    left: AutoSizes,
    room: int | None,
    footprint_of: FootprintOf,
    *,
    devices: Sequence[Fits] = (),
) -> Size:
    """Choose what is left open in `options`, whose own values there are the default size.

    `room` has the bytes that the model may take at most: budget less margin and pinned models;
    None: nobody knows, then it is the default size. `footprint_of` must not shrink when cells or
    slots grow. Of `devices` the first counts that is true of a modest size, or else of the least; what it is
    not true of it must not be true of if cells or slots grow.

    Returns: a size within `room`, if there is any; a larger room never gives a smaller size.
    """
    ladder = _candidates(facts, options, left)
    usual = max(0, bisect_right(ladder.steps, options.ctx if left.ctx else options.slots) - 1)
    modest = max(0, min(usual, bisect_right(ladder.steps, ladder.modest) - 1))
    held = next((fits for place in (modest, 0) for fits in devices if fits(ladder.at(place), 1)), None)

    def size(place: int, reason: str) -> Size:
        chosen = ladder.at(place)
        return Size(options=chosen, footprint=footprint_of(chosen), reason=reason)

    def fitting(parts: int) -> tuple[int, str]:
        """Return the place of the largest size that fits such a part of it all, and what that part is of."""
        most = len(ladder.steps) - 1
        if room is not None:
            most = bisect_right(ladder.steps, room // parts, key=_key(ladder, footprint_of)) - 1
        if held is not None:
            too_large = partial(_is_too_large, ladder, held, parts)
            on_devices = bisect_right(ladder.steps, 0, key=too_large) - 1
            if on_devices < most:
                return on_devices, "the memory of the GPUs"
        return most, "unlimited memory" if room is None else f"{_mib(room)} MiB"

    if room is None and held is None:
        return size(usual, "the default: neither a budget nor the machine's memory is known")
    (largest, bound), (generous, half) = fitting(1), fitting(2)
    if largest < 0:  # (3)
        return size(0, f"the least there is, and even that does not fit into {bound}")
    chosen = max(min(largest, usual), generous)  # (1) (2)
    if chosen == len(ladder.steps) - 1:
        return size(chosen, "the most that is of use to it, or that auto takes")
    if chosen == generous:
        return size(chosen, f"the most that leaves half of {half} to others")
    if chosen == largest:
        return size(chosen, f"the most that fits into {bound}")
    return size(chosen, f"the default; more would not leave half of {half} to others")


def largest_ctx(facts: ModelFacts, options: LoadOptions, room: int, footprint_of: FootprintOf) -> int:
    """Return the largest `llama_ctx` below its own with which a model fits; 0: there is none.

    Everything else stays as it is.
    """
    ladder = _candidates(facts, options, AutoSizes(ctx=True), most_cells=options.ctx)
    places = bisect_right(ladder.steps, room, key=_key(ladder, footprint_of))
    return min(ladder.steps[places - 1], options.ctx) if places else 0


class _Candidates(msgspec.Struct, frozen=True):
    """The sizes that may be chosen, smallest first, by their number of cells (or of slots); never empty."""

    steps: range
    build: Callable[[int], LoadOptions]
    modest: int
    """A step that is of use: less is only better than nothing."""

    def at(self, place: int) -> LoadOptions:
        """Return the options of a size by its place."""
        return self.build(self.steps[place])


def _candidates(
    facts: ModelFacts, options: LoadOptions, left: AutoSizes, most_cells: int = MOST_CELLS
) -> _Candidates:
    trained = facts.context_length
    share = max(LEAST_A_SLOT, min(CELLS_A_SLOT, trained or CELLS_A_SLOT))

    def slots_for(cells: int) -> int:
        return max(1, min(MOST_SLOTS, cells // share)) if left.slots else options.slots

    def build(step: int) -> LoadOptions:
        if not left.ctx:
            return msgspec.structs.replace(options, slots=step)
        slots = slots_for(step)
        cells = min(step, _grouped(slots * trained)) if trained else step
        return msgspec.structs.replace(options, ctx=cells, slots=slots)

    if not left.ctx:
        return _Candidates(range(1, slots_for(options.ctx) + 1), build, modest=1)
    least = _grouped(LEAST_A_SLOT * (1 if left.slots else options.slots))
    most = (MOST_SLOTS if left.slots else options.slots) * trained if trained else options.ctx
    steps = range(least, max(least, _grouped(min(most_cells, most))) + 1, CELL_GROUP)
    return _Candidates(steps, build, modest=share * (1 if left.slots else options.slots))


def _key(ladder: _Candidates, footprint_of: FootprintOf) -> Callable[[int], int]:
    return lambda step: footprint_of(ladder.build(step)).total


def _is_too_large(ladder: _Candidates, fits: Fits, parts: int, step: int) -> bool:
    return not fits(ladder.build(step), parts)


def _grouped(cells: int) -> int:
    return -(-cells // CELL_GROUP) * CELL_GROUP


def _mib(size: int) -> int:
    return -(-size // MIB)
