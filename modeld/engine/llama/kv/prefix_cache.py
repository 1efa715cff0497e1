# SPDX-License-Identifier: GPL-3.0-only
"""Choose which sequences to keep, and what a new prompt reuses of them. Pure.

The KV of a request that has ended stays as a retained sequence, so that a later prompt which begins
alike is not decoded again. What a decision means for llama.cpp's memory comes out as moves (`TrimSequence`,
`ShareCells`), which the engine performs in their order, before its next decode. This is for a cache that all
slots have in common; `split.SplitCache` is its twin for one that is split between them.

Admission of a prompt, cells needed = prompt + answer:
  (1) No slot is free: wait.
  (2) Find the longest common beginning with a retained sequence, or with the prompt of a running one
      as far as it is decoded; at most all tokens but the last, whose logits are needed. Where a prompt
      that is being decoded has much more in common, wait for it: prompts go through one after another
      anyway, and so the common part of prompts that arrive together is decoded once.
  (3) Cells that no running request holds, and that are not taken over, are too few: wait. Retained
      sequences never make a request wait.
  (4) Retained sequences that end where the prompt goes on are continued in place.
  (5) Else the beginning is shared; for the rest of the cells, or for an id, retained sequences go, the
      least recently used first, and from their ends. The source itself is the last: then it is
      continued in place.
When a request got its slot or ended, retained cells above the cap go in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from modeld.engine.llama.kv.prefix_index import PrefixIndex, TokenArray, common_prefix
from modeld.engine.llama.kv.slots import Slots

WEIGHTS_A_CELL = 2
"""By default retained cells have one byte to so many of the weights."""
LEAST_CELLS = 512
"""Retained by default even alongside the smallest model."""
_WORTH_CELLS = 16
"""A shorter beginning is served too, but it is no reason to keep its sequence."""


@dataclass(frozen=True, slots=True)
class TrimSequence:
    """Remove a sequence from position `keep` on; 0 removes it."""

    sequence: int
    keep: int


@dataclass(frozen=True, slots=True)
class ShareCells:
    """Let `sequence`, which is empty, begin with the first `upto` cells of `source`."""

    source: int
    sequence: int
    upto: int


@dataclass(frozen=True, slots=True)
class CopyCells:
    """Copy the first `upto` cells of `source` to `sequence`, which is empty and in a cache of its own."""

    source: int
    sequence: int
    upto: int


Move = TrimSequence | ShareCells | CopyCells


@dataclass(frozen=True, slots=True)
class CacheAdmission:
    """A slot was given: the sequence to decode into, the tokens it has already, and the moves to that end."""

    sequence: int
    cached: int
    moves: tuple[Move, ...]


class NoSlotReason(Enum):
    """Why there is no slot yet."""

    ROOM = "a running request has to end"
    PREFIX = "a running request is about to decode what the prompt begins with"


class PrefixCache(PrefixIndex):
    """Admits requests to slots, and retains what they leave.

    Invariants: a retained sequence holds one cell a token, at positions from 0; running and retained
    cells never exceed the cells there are; those that only retained sequences hold never exceed
    `allowance`.

    Attributes:
      cap: cells that may be retained; 0 switches the cache off.
      yields: whether that holds only while no slot is taken, and nothing otherwise.
    """

    def __init__(self, slots: Slots, cap: int, *, yields: bool = False) -> None:
        super().__init__(cap)
        self.slots = slots
        self.yields = yields

    @property
    def allowance(self) -> int:
        """Cells that only retained sequences may hold now: each slows every step of each stream."""
        return 0 if self.yields and self.slots.busy else self.cap

    @property
    def spare(self) -> list[int]:
        """Sequences that nobody holds."""
        return self.slots.spare

    def admit(
        self, prompt: TokenArray, cells: int, decoded: Mapping[int, int]
    ) -> CacheAdmission | NoSlotReason:
        """Give a request a slot, with the longest beginning of its prompt that is there.

        Args:
          prompt: its tokens, at least one.
          cells: those it needs at most, prompt included.
          decoded: tokens of the prompt that are in the KV cache, by running sequence (those left out
            are of no use to others).

        Returns: why it has to wait; then nothing has changed.
        """
        slots = self.slots
        if slots.busy >= slots.count:  # (1)
            return NoSlotReason.ROOM
        found = self.beginning_of(prompt, decoded)  # (2)
        if found is None:
            return NoSlotReason.PREFIX
        source, shared = found
        if not slots.fits(cells, source, shared):  # (3)
            return NoSlotReason.ROOM
        moves: list[Move] = []
        if source in self._retained:
            if shared >= len(self._retained[source]) - 1 and slots.resume(source, shared, cells):  # (4)
                return self._continued(source, shared, prompt, moves)
            if shared >= _WORTH_CELLS:
                self._retained[source] = self._retained.pop(source)
        for victim in self.retained:  # (5)
            missing = cells - shared - slots.free_cells
            if missing <= 0 and slots.has_id:
                break
            if victim != source:
                moves += self._shrink(victim, missing) if slots.has_id else self._remove(victim)
        sequence = slots.take(cells, source, shared)
        if sequence is None:
            if source not in self._retained or not slots.resume(source, shared, cells):
                raise AssertionError(f"{cells} cells fit by count, but not in fact")
            return self._continued(source, shared, prompt, moves)
        self._prompts[sequence] = prompt
        if source is not None:
            moves.append(ShareCells(source, sequence, shared))
        return CacheAdmission(sequence, shared, (*moves, *self._within_cap()))

    def finish(self, sequence: int, tokens: TokenArray) -> tuple[Move, ...]:
        """End a run, and retain `tokens`, which is what is decoded of it, if that is of use."""
        del self._prompts[sequence]
        retained = {other: common_prefix(tokens, held) for other, held in self._retained.items()}
        known = next((other for other, length in retained.items() if length == len(tokens)), None)
        if not self.cap or not len(tokens) or known is not None:
            self.slots.give_back(sequence)
            if known is not None:
                self._retained[known] = self._retained.pop(known)
            return (TrimSequence(sequence, 0), *self._within_cap())
        moves: list[Move] = [TrimSequence(sequence, len(tokens))]
        self.slots.retain(sequence, len(tokens))
        for other, length in retained.items():
            if length == len(self._retained[other]):
                moves += self._remove(other)
        self._retained[sequence] = tokens
        return (*moves, *self._within_cap())

    def drop(self, sequence: int) -> tuple[Move, ...]:
        """End a run of which nothing may be kept."""
        del self._prompts[sequence]
        self.slots.give_back(sequence)
        return (TrimSequence(sequence, 0), *self._within_cap())

    def forget(self, sequence: int) -> tuple[Move, ...]:
        """Give up a retained sequence."""
        return tuple(self._remove(sequence))

    def _continued(self, source: int, shared: int, prompt: TokenArray, moves: list[Move]) -> CacheAdmission:
        del self._retained[source]
        self._prompts[source] = prompt
        return CacheAdmission(source, shared, (*moves, TrimSequence(source, shared), *self._within_cap()))

    def _within_cap(self) -> list[Move]:
        moves: list[Move] = []
        for victim in self.retained:
            excess = self.slots.idle_cells - self.allowance
            if excess <= 0:
                break
            moves += self._shrink(victim, excess)
        return moves

    def _shrink(self, victim: int, cells: int) -> list[Move]:
        """Free so many cells from the end of a retained sequence, or as many as it has for itself.

        What would be left without a cell of its own is of no use, and goes.
        """
        alone = self.slots.alone(victim)
        freed = np.cumsum(alone[::-1])
        keep = len(alone) - 1 - int(np.searchsorted(freed, cells)) if freed[-1] > cells else 0
        if keep < _WORTH_CELLS or not alone[:keep].any():
            return self._remove(victim)
        self.slots.cut(victim, keep)
        self._retained[victim] = self._retained[victim][:keep]
        return [TrimSequence(victim, keep)]

    def _remove(self, sequence: int) -> list[Move]:
        del self._retained[sequence]
        self.slots.give_back(sequence)
        return [TrimSequence(sequence, 0)]


def retention_cap(cells: int, weights_bytes: int, cell_bytes: int) -> int:
    """Return how many cells may be retained by default, while no slot is taken.

    Those whose KV is half of what a step reads of the weights: alongside a large model attention
    over foreign cells hardly counts, alongside a small one it soon is most of the work.
    Source: docs/prefix-cache.md, "How much is retained".
    """
    return min(cells // 2, max(LEAST_CELLS, weights_bytes // (WEIGHTS_A_CELL * max(cell_bytes, 1))))
