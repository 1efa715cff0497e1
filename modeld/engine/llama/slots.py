# SPDX-License-Identifier: GPL-3.0-only
"""Pure bookkeeping of slots and KV cells: who holds which, and whether one more fits.

A unified KV cache belongs to all slots. Without a reservation neighbours can fill it, and then
`llama_decode` fails in the middle of a generation. So a request takes the cells of its prompt and
of all it may generate together with its slot, and gives both back together.
"""

from __future__ import annotations


class Slots:
    """Slots 0 to `count` - 1 and `cells` KV cells.

    Invariant: reserved cells of all slots together never exceed `cells`.
    """

    def __init__(self, count: int, cells: int) -> None:
        self.count = count
        self.cells = cells
        self._reserved: dict[int, int] = {}

    @property
    def free_cells(self) -> int:
        """Cells that nobody reserved."""
        return self.cells - sum(self._reserved.values())

    @property
    def busy(self) -> int:
        """Slots that are taken."""
        return len(self._reserved)

    def take(self, cells: int) -> int | None:
        """Reserve a slot with so many cells; return its number, or None if either is not there."""
        if cells > self.free_cells:
            return None
        slot = next((slot for slot in range(self.count) if slot not in self._reserved), None)
        if slot is not None:
            self._reserved[slot] = cells
        return slot

    def give_back(self, slot: int) -> None:
        """Free a slot and its cells. KeyError tells of a defect: it was not taken."""
        del self._reserved[slot]
