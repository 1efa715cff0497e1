# SPDX-License-Identifier: GPL-3.0-only
"""The layout of a context's KV cells: one cache for all slots, or one per slot. Pure.

Unified: a request may use as many cells as are free, and sequences share cells. But attention reads the
cells of all of them for each token of each, up to the highest in use, so every stream slows the others.

Split: a slot has its share and sees nothing else; what ended requests left in free slots costs the running
ones nothing. But no request can have more than the share, and a beginning is shared by a copy of the cells.

`auto` splits, and the first request that needs more than a share makes the cache unified, as soon as no
other runs, for as long as the model is loaded: so none loses room by it. Times: docs/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from modeld.domain.model import LoadOptions
from modeld.engine.llama.footprint import CELL_GROUP, retained_sequences

MOST_SEQUENCES = 256
"""LLAMA_MAX_SEQ of llama.cpp."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What llama.cpp is asked for.

    Attributes:
      unified: one cache for all sequences, or one for each.
      cells: of all together.
      sequences: those in slots, and in a unified cache those that the prefix cache retains.
      share: most cells that one request can have.
    """

    unified: bool
    cells: int
    sequences: int
    share: int


def first_layout(options: LoadOptions, trained_context: int, *, recurrent: bool = False) -> Layout:
    """Return the layout to begin with.

    (1) A recurrent model has one state a slot, and attention in some layers at most: unified.
    (2) What the options say.
    (3) `auto` splits where there is more than one slot, a share is at least a group of cells, and no
        number of cells is to be retained alongside streams (which takes sequences alongside those in slots).
    """
    unified = unified_layout(options, trained_context, recurrent=recurrent)
    if recurrent or options.kv_unified:  # (1), (2)
        return unified
    cells = options.ctx // options.slots
    if trained_context:
        cells = min(cells, trained_context)
    share = cells // CELL_GROUP * CELL_GROUP
    if options.kv_unified is None and (options.slots == 1 or not share or options.prefix_cells):  # (3)
        return unified
    share = max(share, CELL_GROUP)
    return Layout(False, share * options.slots, options.slots, share)


def unified_layout(options: LoadOptions, trained_context: int, *, recurrent: bool = False) -> Layout:
    """Return the layout of one cache; more cells than all slots could use are not asked for."""
    cells = min(options.ctx, options.slots * trained_context) if trained_context else options.ctx
    retained = 0 if recurrent else retained_sequences(options)
    sequences = max(options.slots, min(options.slots + retained, MOST_SEQUENCES))
    return Layout(True, cells, sequences, cells)
