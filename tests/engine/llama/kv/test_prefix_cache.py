# SPDX-License-Identifier: GPL-3.0-only
"""The prefix cache: its bookkeeping against a model of llama.cpp's memory, without llama.cpp."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from support.cache_rules import CacheRules, families, family, run

from modeld.engine.llama.kv.prefix_cache import (
    LEAST_CELLS,
    NoSlotReason,
    PrefixCache,
    ShareCells,
    TrimSequence,
    retention_cap,
)
from modeld.engine.llama.kv.prefix_index import WORTH_WAITING
from modeld.engine.llama.kv.slots import Slots


def tokens(*numbers):
    return np.array(numbers, dtype=np.int32)


def common(one, other):
    """Return how many tokens two prompts have in common."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


class Cells:
    """Cells as llama.cpp keeps them: for each sequence a cell at each position; a cell has a token."""

    def __init__(self):
        self.sequences = {}

    def perform(self, moves):
        for move in moves:
            match move:
                case TrimSequence(sequence=sequence, keep=keep):
                    self.sequences[sequence] = self.sequences.get(sequence, [])[:keep]
                case ShareCells(source=source, sequence=sequence, upto=upto):
                    assert not self.sequences.get(sequence), "it would have two cells at one position"
                    assert len(self.sequences[source]) >= upto
                    self.sequences[sequence] = self.sequences[source][:upto]

    def decode(self, sequence, token):
        self.sequences.setdefault(sequence, []).append([token])

    def text(self, sequence):
        return [cell[0] for cell in self.sequences.get(sequence, [])]

    @property
    def used(self):
        return len({id(cell) for cells in self.sequences.values() for cell in cells})


class Request:
    def __init__(self, prompt, limit, admission):
        self.prompt = prompt
        self.limit = limit
        self.sequence = admission.sequence
        self.kept = admission.cached
        self.text = prompt.tolist()

    @property
    def cells(self):
        return len(self.prompt) + self.limit

    @property
    def decoded(self):
        return tokens(*self.text[: self.kept])


class Engine:
    """Requests of one cache, decoded into `Cells`."""

    def __init__(self, count, cells, sequences, cap, *, yields=False):
        self.slots = Slots(count, cells, sequences)
        self.cache = PrefixCache(self.slots, cap, yields=yields)
        self.memory = Cells()
        self.running = []

    def admit(self, prompt, limit):
        decoded = {request.sequence: min(request.kept, len(request.prompt)) for request in self.running}
        admission = self.cache.admit(prompt, len(prompt) + limit, decoded)
        if isinstance(admission, NoSlotReason):
            return admission
        self.memory.perform(admission.moves)
        assert self.memory.text(admission.sequence) == prompt[: admission.cached].tolist()
        assert admission.cached < len(prompt)
        self.running.append(Request(prompt, limit, admission))
        return self.running[-1]

    def decode(self, request, count=10**6):
        for _ in range(min(count, request.cells - request.kept)):
            if request.kept == len(request.text):
                request.text.append(1000 + request.kept)
            self.memory.decode(request.sequence, request.text[request.kept])
            request.kept += 1

    def finish(self, request):
        self.running.remove(request)
        self.memory.perform(self.cache.finish(request.sequence, request.decoded))

    def drop(self, request):
        self.running.remove(request)
        self.memory.perform(self.cache.drop(request.sequence))

    def serve(self, prompt, limit=4):
        """Serve one request to its end; return how many of its tokens were cached."""
        request = self.admit(prompt, limit)
        cached = request.kept
        self.decode(request)
        self.finish(request)
        return cached


class Model(CacheRules):
    """Random admissions, decodes, ends and evictions."""

    @initialize(
        count=st.integers(1, 4),
        cells=st.integers(20, 300),
        extra=st.integers(0, 6),
        cap=st.integers(0, 300),
        yields=st.booleans(),
    )
    def begin(self, count, cells, extra, cap, yields):
        self.engine = Engine(count, cells, count + extra, min(cap, cells), yields=yields)

    @rule(**families, limit=st.integers(1, 40))
    def submit(self, limit, **shape):
        """It waits only for room, or for a beginning that is being decoded."""
        prompt = family(**shape)
        limit = min(limit, self.engine.slots.cells - len(prompt))
        if limit < 1:
            return
        reserved = self.reserved()
        before = self.state()
        match self.engine.admit(prompt, limit):
            case NoSlotReason.ROOM:
                assert self.state() == before
                full = len(self.engine.running) == self.engine.slots.count
                assert full or len(prompt) + limit > self.engine.slots.cells - reserved
            case NoSlotReason.PREFIX:
                assert self.state() == before
                assert any(
                    request.kept + WORTH_WAITING <= common(request.prompt, prompt)
                    for request in self.engine.running
                )

    @rule()
    def end_all(self):
        """When all have ended, only what is retained is left, within the cap."""
        for request in list(self.engine.running):
            self.engine.finish(request)
        slots, cache = self.engine.slots, self.engine.cache
        assert slots.busy == 0
        assert self.engine.memory.used == slots.cells - slots.free_cells == slots.idle_cells <= cache.cap

    def state(self):
        return [(number, self.engine.memory.text(number)) for number in self.engine.cache.retained]

    def reserved(self):
        """Cells that running requests hold or have reserved, shared ones counted once."""
        held = {
            id(cell)
            for request in self.engine.running
            for cell in self.engine.memory.sequences.get(request.sequence, [])
        }
        return len(held) + sum(request.cells - request.kept for request in self.engine.running)

    @invariant()
    def every_sequence_has_its_tokens_at_their_positions(self):
        known = set()
        for request in self.engine.running:
            assert self.engine.memory.text(request.sequence) == request.decoded.tolist()
            known.add(request.sequence)
        for sequence in self.engine.cache.retained:
            assert sequence not in known
            assert self.engine.memory.text(sequence) == self.engine.cache.tokens(sequence).tolist() != []
            known.add(sequence)
        assert all(not cells for number, cells in self.engine.memory.sequences.items() if number not in known)

    @invariant()
    def cells_are_neither_leaked_nor_sold_twice(self):
        slots = self.engine.slots
        to_come = sum(request.cells - request.kept for request in self.engine.running)
        assert self.engine.memory.used + to_come == slots.cells - slots.free_cells <= slots.cells
        assert slots.busy == len(self.engine.running) <= slots.count
        assert self.reserved() + slots.idle_cells + slots.free_cells == slots.cells
        assert slots.idle_cells <= self.engine.cache.allowance


TestModel = Model.TestCase


@pytest.fixture
def engine():
    return Engine(4, 1000, 12, 500)


def test_the_next_turn_of_a_chat_continues_in_place(engine):
    """Prompt and answer of the turn before are there, in the same sequence."""
    assert engine.serve(run(0, 100), limit=20) == 0
    (first,) = engine.cache.retained
    history = engine.cache.tokens(first)
    assert len(history) == 120
    request = engine.admit(np.concatenate((history, run(500, 530))), 10)
    assert (request.sequence, request.kept) == (first, 120)


def test_a_shared_beginning_is_kept_once(engine):
    """Two prompts with the same long beginning hold it together, while both stay usable."""
    engine.serve(run(0, 100))
    assert engine.serve(np.concatenate((run(0, 80), run(500, 540)))) == 80
    assert engine.slots.idle_cells == 104 + 44
    assert engine.serve(np.concatenate((run(0, 100), run(700, 710)))) == 100


def test_the_same_prompt_again_decodes_one_token(engine):
    """Its logits are needed, and nothing else."""
    engine.serve(run(0, 100))
    assert engine.serve(run(0, 100)) == 99
    assert len(engine.cache.retained) == 1


def test_a_running_request_lends_what_is_decoded_of_its_prompt(engine):
    """Another request begins with it at once; each may end first."""
    first = engine.admit(run(0, 100), 50)
    engine.decode(first, 60)
    second = engine.admit(run(0, 100), 50)
    assert second.kept == 60
    assert engine.slots.free_cells == 1000 - 150 - 90
    engine.finish(first)
    engine.decode(second)
    engine.finish(second)
    assert engine.memory.used == engine.slots.idle_cells == 150


def test_who_begins_alike_waits_for_a_prefill_instead_of_repeating_it(engine):
    """Of prompts that arrive together the common part is decoded once."""
    first = engine.admit(run(0, 300), 10)
    second = np.concatenate((run(0, 290), run(500, 520)))
    assert engine.admit(second, 10) is NoSlotReason.PREFIX
    engine.decode(first, 200)
    assert engine.admit(second, 10) is NoSlotReason.PREFIX
    engine.decode(first, 100)
    assert engine.admit(second, 10).kept == 290


def test_a_prefill_that_ends_early_keeps_nobody_waiting(engine):
    """Cancelled before it decoded anything, it is nothing to wait for."""
    first = engine.admit(run(0, 300), 10)
    assert engine.admit(run(0, 300), 10) is NoSlotReason.PREFIX
    engine.finish(first)
    assert engine.admit(run(0, 300), 10).kept == 0


def test_what_a_running_request_answers_is_not_lent(engine):
    """Only of prompts is it known that others begin so."""
    first = engine.admit(run(0, 50), 50)
    engine.decode(first)
    assert engine.admit(tokens(*first.text), 10).kept == 50


def test_of_two_beginnings_the_longer_one_counts(engine):
    """The source is the sequence with most in common."""
    for parts in (40, 70, 55):
        engine.serve(np.concatenate((run(0, parts), run(500, 520))))
    assert engine.serve(np.concatenate((run(0, 65), run(900, 910)))) == 65


def test_the_least_recently_used_goes_first(engine):
    """What was asked for again stays longer than what was not."""
    for root in (0, 1000, 2000):
        engine.serve(run(root, root + 140))
    assert engine.serve(np.concatenate((run(0, 140), tokens(7)))) == 140
    engine.serve(run(3000, 3140))
    assert engine.serve(np.concatenate((run(0, 140), tokens(8)))) >= 140
    assert engine.serve(run(1000, 1140)) < 139


@pytest.mark.parametrize("again", [False, True])
def test_who_needs_cells_takes_those_of_the_least_recently_used(again):
    """Of two that are retained the one that was asked for last stays whole, the other loses its end."""
    engine = Engine(4, 1000, 12, 1000)
    roots = [0, 2000]
    for root in roots:
        engine.serve(run(root, root + 300))
    if again:
        engine.serve(run(0, 300))
        roots.reverse()
    engine.admit(run(5000, 5400), 100)
    left = {int(held[0]): len(held) for held in map(engine.cache.tokens, engine.cache.retained)}
    assert left == {roots[0]: 304 - 108, roots[1]: 304}


def test_a_request_never_waits_for_retained_cells(engine):
    """Retained sequences go from their ends, and only as far as they must."""
    engine.serve(run(0, 400))
    request = engine.admit(run(5000, 5600), 100)
    assert request.kept == 0
    (left,) = engine.cache.retained
    assert len(engine.cache.tokens(left)) == 300
    engine.finish(request)


def test_the_source_itself_gives_way_to_its_own_continuation():
    """A prompt that needs all cells still begins with what is there."""
    engine = Engine(2, 200, 8, 200)
    engine.serve(run(0, 100), limit=50)
    request = engine.admit(np.concatenate((run(0, 90), run(500, 600))), 10)
    assert request.kept == 90
    assert engine.slots.free_cells == 0


def test_what_is_longer_than_the_cap_is_kept_in_part(engine):
    """The beginning of a long prompt is of use without its end."""
    engine.serve(run(0, 700))
    assert engine.slots.idle_cells == 500
    assert engine.serve(run(0, 700)) == 500


def test_without_a_cap_nothing_is_kept_and_nothing_shared():
    """0 switches the cache off."""
    engine = Engine(2, 500, 2, 0)
    assert engine.serve(run(0, 100)) == 0
    first = engine.admit(run(0, 100), 10)
    engine.decode(first)
    assert engine.admit(run(0, 100), 10).kept == 0
    assert engine.cache.retained == ()


def test_ids_are_no_reason_to_wait():
    """With no more ids than slots a retained sequence gives up its own."""
    engine = Engine(2, 500, 2, 500)
    for root in (0, 1000):
        engine.serve(run(root, root + 50))
    running = [engine.admit(run(root, root + 50), 10) for root in (2000, 3000)]
    assert all(isinstance(request, Request) for request in running)
    assert engine.cache.retained == ()


def test_a_broken_request_leaves_nothing(engine):
    """Its cells go, and those it shares stay with the others."""
    engine.serve(run(0, 100))
    request = engine.admit(np.concatenate((run(0, 60), run(500, 520))), 10)
    engine.decode(request)
    engine.drop(request)
    assert engine.slots.idle_cells == engine.memory.used == 104


def test_retained_cells_yield_to_streams():
    """As soon as a slot is taken, its steps read no foreign cells."""
    engine = Engine(2, 1000, 12, 400, yields=True)
    engine.serve(run(0, 390))
    assert engine.slots.idle_cells == 394
    engine.admit(run(2000, 2010), 10)
    assert engine.slots.idle_cells == 0
    engine.admit(run(3000, 3010), 10)
    assert engine.slots.idle_cells == 0


def test_what_streams_share_does_not_yield():
    """Cells that a stream uses itself cost nothing more, whoever else may begin with them."""
    engine = Engine(1, 1000, 12, 400, yields=True)
    engine.serve(run(0, 200))
    request = engine.admit(np.concatenate((run(0, 190), run(500, 600))), 10)
    assert request.kept == 190
    assert engine.slots.idle_cells == 0
    engine.decode(request)
    engine.finish(request)
    assert engine.serve(run(0, 200)) == 190


@pytest.mark.parametrize(
    ("cells", "weights", "cell", "cap"),
    [
        (8192, 92_000_000, 22_500, 2044),
        (8192, 4_500_000_000, 131_072, 4096),
        (65536, 4_500_000_000, 131_072, 17166),
        (8192, 500_000, 2048, LEAST_CELLS),
        (256, 500_000, 2048, 128),
        (256, 500_000, 0, 128),
    ],
)
def test_the_cap_follows_from_what_a_step_reads_anyway(cells, weights, cell, cap):
    """Half of the weights' bytes, at most half of the cells, and not next to nothing."""
    assert retention_cap(cells, weights, cell) == cap
