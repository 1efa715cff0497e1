# SPDX-License-Identifier: GPL-3.0-only
"""Operate on llama.cpp's KV memory by sequence: cut, share, copy, shift, and test its abilities.

All calls are made between decodes, by the engine's thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from modeld.engine.llama.kv.prefix_cache import CopyCells, Move, ShareCells, TrimSequence
from modeld.engine.llama.native.batch import Batch
from modeld.engine.llama.native.library import lib

_PROBE_TOKENS = 4


class KvMemory:
    """The memory of one context.

    Attributes:
      split: each sequence has a cache of its own.
      windowed: the model attends only to the last tokens in some layers, and the cells before them
        may be given to others while their sequence lives; then `is_whole` tells whether they were.
    """

    def __init__(self, pointer: int, *, windowed: bool, split: bool = False) -> None:
        self._pointer = pointer
        self.split = split
        self.windowed = windowed

    def perform(self, moves: Iterable[Move]) -> None:
        """Perform what the bookkeeping decided, in its order."""
        for move in moves:
            match move:
                case TrimSequence(sequence=sequence, keep=keep):
                    self.cut(sequence, keep)
                case CopyCells(source=source, sequence=sequence, upto=upto):
                    # llama.cpp copies whole caches only, with the next decode; it notes the cells at once
                    lib.llama_memory_seq_cp(self._pointer, source, sequence, -1, -1)
                    self.cut(sequence, upto)
                case ShareCells(source=source, sequence=sequence, upto=upto):
                    lib.llama_memory_seq_cp(self._pointer, source, sequence, 0, upto)

    def cut(self, sequence: int, keep: int) -> bool:
        """Remove a sequence from position `keep` on; return False if this memory cannot do that.

        Cells that others share stay theirs. Removing all (`keep` 0) always works.
        """
        return lib.llama_memory_seq_rm(self._pointer, sequence, keep or -1, -1)

    @property
    def can_shift(self) -> bool:
        """Whether `shift` is possible."""
        return lib.llama_memory_can_shift(self._pointer)

    def shift(self, sequence: int, keep: int, discard: int) -> None:
        """Remove `discard` tokens behind the first `keep`, and let the rest move up.

        llama.cpp turns the keys of the rest to their new positions with the next decode. No other sequence
        may hold any of these cells: it would be moved too.
        """
        lib.llama_memory_seq_rm(self._pointer, sequence, keep, keep + discard)
        lib.llama_memory_seq_add(self._pointer, sequence, keep + discard, -1, -discard)

    def length(self, sequence: int) -> int:
        """Return how many tokens of a sequence are decoded."""
        return lib.llama_memory_seq_pos_max(self._pointer, sequence) + 1

    def is_whole(self, sequence: int) -> bool:
        """Say whether a sequence still has its first position, and with it all the others."""
        return lib.llama_memory_seq_pos_min(self._pointer, sequence) == 0

    def clear(self) -> None:
        """Forget all sequences."""
        lib.llama_memory_clear(self._pointer, False)

    def try_out(self, context: int, batch: Batch, token: int) -> int:
        """Find out by a trial whether sequences can be cut and shared. Leaves the memory empty.

        Returns: bytes that a cell takes, over all layers; 0 if the memory cannot do it.

        A recurrent state is one for the whole sequence: it can be copied, but not cut. Do not ask
        models that are known to have one.
        """
        half = _PROBE_TOKENS // 2
        self.clear()
        able = True
        for position in range(_PROBE_TOKENS):  # one by one: a batch may have room for no more
            batch.clear()
            batch.add_token(token, position, 0)
            able = able and lib.llama_decode(context, batch.struct) == 0
        cell_bytes = lib.llama_state_seq_get_size(context, 0) // _PROBE_TOKENS
        if able:
            self.perform([CopyCells(0, 1, half) if self.split else ShareCells(0, 1, half)])
            able = self.length(1) == half and self.is_whole(1)
            able = able and self.cut(0, half + 1) and self.length(0) == half + 1 and self.length(1) == half
            able = able and self.cut(0, 0) and self.length(0) == 0 and self.length(1) == half
        self.clear()
        return cell_bytes if able else 0
