# SPDX-License-Identifier: GPL-3.0-only
"""Count sequences and KV cells, and tell whether another request fits. Pure.

A unified KV cache belongs to all slots. Without a reservation neighbours can fill it, and then
`llama_decode` fails in the middle of a generation. So a request takes the cells of its prompt and
of all it may generate together with its slot, and gives both back together.

A sequence runs in a slot, or is retained: its request has ended, and its cells serve as the
beginning of later prompts. Sequences may share their first cells, as llama.cpp lets them. Cells
are therefore counted one by one and not by sums: each has the number of those who hold it. (The
numbers of cells are ours; which cell of the cache llama.cpp takes does not matter here.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Cells = npt.NDArray[np.intp]


class Slots:
    """`count` slots, `cells` KV cells, and ids 0 to `sequences` - 1 for sequences.

    Invariant: no cell is reserved twice, but for those that sequences share on purpose. So the
    cells of running and of retained sequences together never exceed `cells`.
    """

    def __init__(self, count: int, cells: int, sequences: int | None = None) -> None:
        self.count = count
        self.cells = cells
        self.sequences = count if sequences is None else sequences
        self._held: dict[int, _Cells] = {}
        self._running: set[int] = set()
        self._holders = np.zeros(cells, dtype=np.int16)
        self._users = np.zeros(cells, dtype=np.int16)

    @property
    def busy(self) -> int:
        """Slots that are taken."""
        return len(self._running)

    @property
    def free_cells(self) -> int:
        """Cells that nobody holds."""
        return self.cells - int(np.count_nonzero(self._holders))

    @property
    def idle_cells(self) -> int:
        """Cells that only retained sequences hold."""
        return int(np.count_nonzero(self._holders)) - int(np.count_nonzero(self._users))

    @property
    def has_id(self) -> bool:
        """Whether one more sequence can begin without an old one's going."""
        return len(self._held) < self.sequences

    @property
    def spare(self) -> list[int]:
        """Sequences that nobody holds."""
        return [number for number in range(self.sequences) if number not in self._held]

    def length(self, sequence: int) -> int:
        """Return how many cells a sequence holds or has reserved."""
        return len(self._held[sequence])

    def fits(self, cells: int, source: int | None = None, shared: int = 0) -> bool:
        """Say whether a request for so many cells fits once all retained sequences are gone.

        The first `shared` of the cells are those of `source`, and stay.
        """
        kept = self._users > 0
        if source is not None:
            kept[self._held[source][:shared]] = True
        return self.busy < self.count and cells - shared <= self.cells - int(np.count_nonzero(kept))

    def take(self, cells: int, source: int | None = None, shared: int = 0) -> int | None:
        """Reserve a slot with so many cells, of which it shares the first with `source`.

        Returns: the id of the new sequence, or None if a slot, an id or cells are not there.
        """
        if self.busy >= self.count or not self.has_id or cells - shared > self.free_cells:
            return None
        sequence = next(number for number in range(self.sequences) if number not in self._held)
        self._hold(sequence, self._extended(source, shared, cells))
        self._run(sequence)
        return sequence

    def resume(self, sequence: int, shared: int, cells: int) -> bool:
        """Let a retained sequence run on from its first `shared` cells, with `cells` altogether.

        Returns: False, and nothing changes, if the slot or the cells are not there.
        """
        freed = self.freed_by(sequence, shared)
        if self.busy >= self.count or cells - shared > self.free_cells + freed:
            return False
        self.cut(sequence, shared)
        extended = self._extended(sequence, shared, cells)
        self._holders[self._held[sequence]] -= 1
        self._hold(sequence, extended)
        self._run(sequence)
        return True

    def retain(self, sequence: int, keep: int) -> None:
        """End the run of a sequence and retain its first `keep` cells (at least one)."""
        self._stop(sequence)
        self.cut(sequence, keep)

    def give_back(self, sequence: int) -> None:
        """Free a sequence, its slot, and the cells that it shares with nobody.

        KeyError tells of a defect: it held none.
        """
        cells = self._held[sequence]
        if sequence in self._running:
            self._stop(sequence)
        del self._held[sequence]
        self._holders[cells] -= 1

    def cut(self, sequence: int, keep: int) -> None:
        """Leave a retained sequence its first `keep` cells."""
        cells = self._held[sequence]
        self._holders[cells[keep:]] -= 1
        self._held[sequence] = cells[:keep]

    def freed_by(self, sequence: int, keep: int) -> int:
        """Return how many cells a `cut` would free."""
        return int(np.count_nonzero(self.alone(sequence)[keep:]))

    def alone(self, sequence: int) -> npt.NDArray[np.bool_]:
        """Return for each cell of a sequence whether nobody else holds it."""
        return np.equal(self._holders[self._held[sequence]], 1)

    def _extended(self, source: int | None, shared: int, cells: int) -> _Cells:
        """Return the first `shared` cells of a sequence, and free ones up to the number wanted."""
        free = np.flatnonzero(self._holders == 0)[: cells - shared]
        return free if source is None else np.concatenate((self._held[source][:shared], free))

    def _hold(self, sequence: int, cells: _Cells) -> None:
        self._held[sequence] = cells
        self._holders[cells] += 1

    def _run(self, sequence: int) -> None:
        self._running.add(sequence)
        self._users[self._held[sequence]] += 1

    def _stop(self, sequence: int) -> None:
        self._running.remove(sequence)
        self._users[self._held[sequence]] -= 1
