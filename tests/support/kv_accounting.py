# SPDX-License-Identifier: GPL-3.0-only
"""Whether what llama.cpp holds is what the engine's bookkeeping says, sequence for sequence."""

from __future__ import annotations

from modeld.engine.llama.kv.split_cache import SplitCache
from modeld.engine.llama.native.library import lib


def cells_held(engine):
    """Return how many tokens llama.cpp holds of each sequence that has any.

    Their positions begin at 0, but for a recurrent state, which has only the last, and for windows.
    """
    lengths = {}
    plain = not (engine._places.memory.windowed or engine._model.recurrent)
    for sequence in range(engine._model.sequences):
        first = lib.llama_memory_seq_pos_min(engine._model.memory, sequence)
        last = lib.llama_memory_seq_pos_max(engine._model.memory, sequence)
        assert (first, last) == (-1, -1) or 0 <= first <= (0 if plain else last) <= last
        if last >= 0:
            lengths[sequence] = last + 1
    return lengths


def assert_kv_matches(engine):
    """At any moment between two steps: lengths agree, and no cell is promised twice.

    What others have overwritten in a windowed layer is given up at the next admission.
    """
    cache, memory = engine._places.cache, engine._places.memory
    running = {job.slot: job.kept for job in engine._running}
    retained = {sequence: len(cache.tokens(sequence)) for sequence in cache.retained}
    assert not running.keys() & retained.keys()
    lost = {sequence for sequence in retained if memory.windowed and not memory.is_whole(sequence)}
    inside = {sequence: length for sequence, length in cells_held(engine).items() if sequence not in lost}
    known = {
        sequence: length
        for sequence, length in (running | retained).items()
        if length and sequence not in lost
    }
    assert inside == known, f"llama.cpp holds {inside}, the accounts say {running} and {retained}"
    if isinstance(cache, SplitCache):
        assert len(engine._running) == cache.busy <= cache.count
        assert all(job.kept <= job.cells <= cache.share for job in engine._running)
        assert sum(retained.values()) <= cache.cap
        return
    slots = cache.slots
    assert len(engine._running) == slots.busy <= slots.count
    for job in engine._running:
        assert job.kept <= slots.length(job.slot) == job.cells
    for sequence, length in retained.items():
        assert slots.length(sequence) == length
    assert 0 <= slots.idle_cells <= cache.allowance <= cache.cap
    assert (
        0 <= slots.free_cells <= slots.cells - sum(job.cells - job.prompt_length for job in engine._running)
    )


def assert_kv_at_rest(engine):
    """With nothing to do: the accounts agree, and all that is held is what may be retained."""
    assert not engine.busy
    assert_kv_matches(engine)
    cache = engine._places.cache
    if isinstance(cache, SplitCache):
        assert cache.busy == 0
        return
    slots = cache.slots
    assert slots.busy == 0
    assert slots.cells - slots.free_cells == slots.idle_cells
