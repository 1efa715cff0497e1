# SPDX-License-Identifier: GPL-3.0-only
"""The accounts of cells, alone: every operation in any order against sets of cells."""

from __future__ import annotations

from itertools import count

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modeld.engine.llama.kv.slots import Slots


class Accounts(RuleBasedStateMachine):
    """Each sequence is a list of cells, in which a shared cell is the same number."""

    @initialize(slots=st.integers(1, 4), cells=st.integers(4, 60), extra=st.integers(0, 4))
    def begin(self, slots, cells, extra):
        self.slots = Slots(slots, cells, slots + extra)
        self.numbers = count()
        self.held = {}
        self.running = set()

    @rule(cells=st.integers(1, 60), which=st.integers(0, 9), shared=st.integers(0, 60))
    def take(self, cells, which, shared):
        """A new sequence, maybe with the first cells of another one."""
        source = sorted(self.held)[which % len(self.held)] if self.held and shared else None
        shared = 0 if source is None else min(shared, len(self.held[source]), cells)
        used = self.used()
        room = cells - shared <= self.slots.cells - len(used)
        may = room and len(self.running) < self.slots.count and len(self.held) < self.slots.sequences
        kept = self.used(self.running) | set(self.held[source][:shared] if source is not None else ())
        fits = len(self.running) < self.slots.count and cells - shared <= self.slots.cells - len(kept)
        assert self.slots.fits(cells, source, shared) == fits
        sequence = self.slots.take(cells, source, shared)
        assert (sequence is not None) == may
        if sequence is None:
            return
        assert sequence not in self.held
        beginning = [] if source is None else self.held[source][:shared]
        self.held[sequence] = beginning + [next(self.numbers) for _ in range(cells - shared)]
        self.running.add(sequence)

    @precondition(lambda self: self.retained())
    @rule(which=st.integers(0, 9), shared=st.integers(0, 60), more=st.integers(1, 60))
    def resume(self, which, shared, more):
        """A retained sequence runs on from somewhere."""
        sequence = self.retained()[which % len(self.retained())]
        shared = min(shared, len(self.held[sequence]))
        freed = set(self.held[sequence][shared:]) - self.used(self.held.keys() - {sequence})
        assert self.slots.freed_by(sequence, shared) == len(freed)
        room = more <= self.slots.cells - len(self.used()) + len(freed)
        may = room and len(self.running) < self.slots.count
        assert self.slots.resume(sequence, shared, shared + more) == may
        if may:
            beginning = self.held[sequence][:shared]
            self.held[sequence] = beginning + [next(self.numbers) for _ in range(more)]
            self.running.add(sequence)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9), keep=st.integers(1, 60))
    def retain(self, which, keep):
        """A run ends, and its first cells stay."""
        sequence = sorted(self.running)[which % len(self.running)]
        keep = min(keep, len(self.held[sequence]))
        self.slots.retain(sequence, keep)
        self.running.remove(sequence)
        self.held[sequence] = self.held[sequence][:keep]

    @precondition(lambda self: self.retained())
    @rule(which=st.integers(0, 9), keep=st.integers(1, 60))
    def cut(self, which, keep):
        """A retained sequence gets shorter."""
        sequence = self.retained()[which % len(self.retained())]
        keep = min(keep, len(self.held[sequence]))
        self.slots.cut(sequence, keep)
        self.held[sequence] = self.held[sequence][:keep]

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9))
    def give_back(self, which):
        """A sequence goes, whether it runs or is retained."""
        sequence = sorted(self.held)[which % len(self.held)]
        self.slots.give_back(sequence)
        self.running.discard(sequence)
        del self.held[sequence]

    def retained(self):
        return sorted(self.held.keys() - self.running)

    def used(self, sequences=None):
        """Return the cells of some sequences, or of all."""
        return {cell for key in (self.held if sequences is None else sequences) for cell in self.held[key]}

    @invariant()
    def the_counts_are_those_of_the_sets(self):
        used, mine = self.used(), self.used(self.running)
        assert len(used) <= self.slots.cells
        assert self.slots.free_cells == self.slots.cells - len(used)
        assert self.slots.idle_cells == len(used - mine)
        assert self.slots.busy == len(self.running) <= self.slots.count
        assert self.slots.has_id == (len(self.held) < self.slots.sequences)
        for sequence, cells in self.held.items():
            others = self.used(self.held.keys() - {sequence})
            assert self.slots.length(sequence) == len(cells)
            assert self.slots.alone(sequence).tolist() == [cell not in others for cell in cells]


TestAccounts = Accounts.TestCase
