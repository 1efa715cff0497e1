# SPDX-License-Identifier: GPL-3.0-only
"""A KV cache on paper, as llama.cpp has it: cells, each with a token, its position and its sequences."""

from __future__ import annotations

from dataclasses import dataclass, field

from modeld.engine.llama.kv.prefix_cache import ShareCells, TrimSequence


@dataclass
class Cell:
    """One cell; it is free while no sequence has it."""

    position: int = -1
    token: int = -1
    sequences: set[int] = field(default_factory=set)


class KvCache:
    """So many cells, and no more."""

    def __init__(self, cells: int) -> None:
        self.cells = [Cell() for _ in range(cells)]

    @property
    def used(self) -> int:
        """Cells that some sequence has."""
        return sum(bool(cell.sequences) for cell in self.cells)

    @property
    def sequences(self) -> set[int]:
        """Sequences that have a cell."""
        return set().union(*(cell.sequences for cell in self.cells))

    def perform(self, moves) -> None:
        """Remove and copy, as `llama_memory_seq_rm` and `llama_memory_seq_cp` do."""
        for move in moves:
            match move:
                case TrimSequence(sequence=sequence, keep=keep):
                    self.cut(sequence, keep)
                case ShareCells(source=source, sequence=sequence, upto=upto):
                    assert self.length(sequence) == 0, "it would have two cells at one position"
                    for cell in self.cells:
                        if source in cell.sequences and cell.position < upto:
                            cell.sequences.add(sequence)

    def cut(self, sequence: int, keep: int) -> None:
        """Remove a sequence from a position on."""
        for cell in self.cells:
            if cell.position >= keep:
                cell.sequences.discard(sequence)

    def write(self, sequence: int, position: int, token: int) -> None:
        """Put a token into any free cell; there must be one."""
        free = next((cell for cell in self.cells if not cell.sequences), None)
        assert free is not None, "llama_decode would return 1: no cell is free"
        free.position, free.token, free.sequences = position, token, {sequence}

    def read(self, sequence: int) -> list[int]:
        """Return what attention reads: the tokens of a sequence, which must be whole, each place once."""
        cells = sorted(
            (cell for cell in self.cells if sequence in cell.sequences), key=lambda cell: cell.position
        )
        assert [cell.position for cell in cells] == list(range(len(cells))), "a position is missing or twice"
        return [cell.token for cell in cells]

    def length(self, sequence: int) -> int:
        """Return how many cells a sequence has."""
        return sum(sequence in cell.sequences for cell in self.cells)
