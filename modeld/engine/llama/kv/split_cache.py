# SPDX-License-Identifier: GPL-3.0-only
"""A prefix cache for slots that have a KV cache each. Pure.

The twin of `prefix.PrefixCache` for a cache that is split (`layout`). What an ended request left stays
in its slot until another takes the slot; running streams do not see it.

Admission of a prompt:
  (1) No slot is free: wait.
  (2) Find the longest common beginning with what is retained, or with the prompt of a running request as
      far as that is decoded; where one is about to decode much more of it, wait for that.
  (3) Choose a free slot. llama.cpp decodes slots together only if their numbers follow each other, and
      each gap costs a pass over the weights: so the slot with the fewest gaps. Among equals
      a retained sequence that ends where the prompt goes on; an empty slot; one whose sequence has at
      least half in common; the least recently used.
  (4) If the beginning is in another slot, copy it, unless it is so short that decoding it is cheaper:
      llama.cpp copies the whole cache of a slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modeld.engine.llama.kv.prefix_cache import CacheAdmission, CopyCells, Move, NoSlotReason, TrimSequence
from modeld.engine.llama.kv.prefix_index import PrefixIndex, TokenArray, common_prefix

_WORTH_COPYING = 16
"""A shorter beginning is decoded again."""
_COPIED_A_TOKEN = 64
"""Cells that are copied in the time one token takes in a prefill, at least (docs/prefix-cache.md)."""


class SplitCache(PrefixIndex):
    """Admits requests to slots, and retains what they leave there. A slot is a sequence.

    Attributes:
      count: slots.
      share: cells of each.
      cap: cells that may be retained in free slots; 0 switches that off.
    """

    def __init__(self, count: int, share: int, cap: int) -> None:
        super().__init__(cap)
        self.count = count
        self.share = share

    @property
    def spare(self) -> list[int]:
        """Slots with nothing in them."""
        return [
            slot for slot in range(self.count) if slot not in self._prompts and slot not in self._retained
        ]

    @property
    def busy(self) -> int:
        """Slots that are taken."""
        return len(self._prompts)

    def admit(
        self, prompt: TokenArray, cells: int, decoded: Mapping[int, int]
    ) -> CacheAdmission | NoSlotReason:
        """Give a request a slot, with the longest beginning of its prompt that is worth it.

        Args: as of `PrefixCache.admit`; `cells` is at most the share.
        Returns: why it has to wait; then nothing has changed.
        """
        if cells > self.share:
            raise AssertionError(f"{cells} cells are more than the share of a slot, {self.share}")
        if self.busy >= self.count:  # (1)
            return NoSlotReason.ROOM
        found = self.beginning_of(prompt, decoded)  # (2)
        if found is None:
            return NoSlotReason.PREFIX
        source, shared = found
        sequence = self._choose(source, shared)  # (3)
        moves: list[Move] = []
        if source == sequence:
            moves.append(TrimSequence(sequence, shared))
        else:
            if sequence in self._retained:
                moves.append(TrimSequence(sequence, 0))
            if shared >= max(_WORTH_COPYING, self.share // _COPIED_A_TOKEN) and source is not None:  # (4)
                moves.append(CopyCells(source, sequence, shared))
                if source in self._retained:
                    self._retained[source] = self._retained.pop(source)
            else:
                shared = 0
        self._retained.pop(sequence, None)
        self._prompts[sequence] = prompt
        return CacheAdmission(sequence, shared, tuple(moves))

    def finish(self, sequence: int, tokens: TokenArray) -> tuple[Move, ...]:
        """End a run, and retain `tokens`, which is what is decoded of it, if that is of use."""
        del self._prompts[sequence]
        alike = {other: common_prefix(tokens, held) for other, held in self._retained.items()}
        known = next((other for other, length in alike.items() if length == len(tokens)), None)
        keep = min(len(tokens), self.cap)
        if not keep or known is not None:
            if known is not None:
                self._retained[known] = self._retained.pop(known)
            return (TrimSequence(sequence, 0),)
        moves: list[Move] = [TrimSequence(sequence, keep)]
        for other, length in alike.items():
            if length == len(self._retained[other]):
                moves += self.forget(other)
        self._retained[sequence] = tokens[:keep]
        excess = sum(len(held) for held in self._retained.values()) - self.cap
        for victim in self.retained:
            if excess <= 0:
                break
            excess -= len(self._retained[victim])
            moves += self.forget(victim)
        return tuple(moves)

    def drop(self, sequence: int) -> tuple[Move, ...]:
        """End a run of which nothing may be kept."""
        del self._prompts[sequence]
        return (TrimSequence(sequence, 0),)

    def forget(self, sequence: int) -> tuple[Move, ...]:
        """Give up a retained sequence."""
        del self._retained[sequence]
        return (TrimSequence(sequence, 0),)

    def _choose(self, source: int | None, shared: int) -> int:
        """Return the free slot for a prompt whose beginning is in `source`."""
        age = {sequence: place for place, sequence in enumerate(self._retained)}

        def cost(sequence: int) -> tuple[int, int, int]:
            busy = {sequence, *self._prompts}
            groups = sum(number - 1 not in busy for number in busy)
            if sequence not in age:
                return groups, 1, sequence
            held = len(self._retained[sequence])
            if sequence == source and shared >= held - 1:
                return groups, 0, 0
            if sequence == source and 2 * shared >= held:
                return groups, 2, 0
            return groups, 3, age[sequence]

        return min((number for number in range(self.count) if number not in self._prompts), key=cost)


def order(streams: Iterable[int], prompts: Iterable[int]) -> list[int]:
    """Return the order in which slots are written into a batch, so that a split cache decodes it fast.

    llama.cpp makes its passes so (`llama_batch_allocr::split_equal`): it takes the first slot of the batch
    that is left, then each with the next number, wherever that stands; and of all these as many tokens
    as the one with the fewest has. With a stream among them that is one of each, and the rest of a
    prompt goes into another pass: both of odd sizes, and the CPU computes four tokens in the time of
    three. So prompts come first, if no stream has the number that follows one of theirs, or last, if none
    of theirs follows a stream's.
    """
    streams, prompts = sorted(streams), sorted(prompts)
    if not {slot + 1 for slot in prompts}.intersection(streams):
        return prompts + streams
    if not {slot + 1 for slot in streams}.intersection(prompts):
        return streams + prompts
    return sorted(streams + prompts)
