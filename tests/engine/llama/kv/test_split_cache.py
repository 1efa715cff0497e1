# SPDX-License-Identifier: GPL-3.0-only
"""A split KV cache: its layout, and its bookkeeping against a model of the caches, without llama.cpp."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from support.cache_rules import CacheRules, families, family, run

from modeld.domain.model import LoadOptions
from modeld.engine.llama.kv.layout import first_layout, unified_layout
from modeld.engine.llama.kv.prefix_cache import CopyCells, NoSlotReason, TrimSequence
from modeld.engine.llama.kv.prefix_index import WORTH_WAITING
from modeld.engine.llama.kv.split_cache import SplitCache


def options(**more):
    return LoadOptions(**{"ctx": 8192, "slots": 4} | more)


# layout


def test_auto_splits_in_equal_shares():
    """All cells are there, a share each, in whole groups of cells as llama.cpp has them."""
    layout = first_layout(options(), 8192)
    assert (layout.unified, layout.cells, layout.sequences, layout.share) == (False, 8192, 4, 2048)
    assert first_layout(options(slots=3), 8192).share == 2560
    assert first_layout(options(ctx=100_000), 8192).share == 8192


@pytest.mark.parametrize(
    "more", [{"slots": 1}, {"ctx": 1000}, {"prefix_cells": 100}, {"kv_unified": True}], ids=str
)
def test_auto_does_not_split_what_is_better_whole(more):
    """One slot, shares below a group of cells, or cells to retain alongside streams: one cache."""
    assert first_layout(options(**more), 8192) == unified_layout(options(**more), 8192)


def test_who_asks_for_shares_gets_them():
    """Also small ones: llama.cpp has a group of cells at least."""
    layout = first_layout(options(ctx=100, kv_unified=False), 8192)
    assert (layout.unified, layout.share, layout.cells) == (False, 256, 1024)


def test_a_recurrent_model_is_never_split():
    """Its state is one a slot anyway."""
    assert first_layout(options(kv_unified=False), 8192, recurrent=True).unified


# bookkeeping


class Streams:
    """What llama.cpp has: the tokens in the cache of each slot."""

    def __init__(self):
        self.slots = {}

    def text(self, slot):
        return self.slots.get(slot, [])

    def perform(self, moves):
        for move in moves:
            match move:
                case TrimSequence(sequence=slot, keep=keep):
                    self.slots[slot] = self.text(slot)[:keep]
                case CopyCells(source=source, sequence=slot, upto=upto):
                    assert source != slot
                    assert not self.text(slot)
                    assert len(self.text(source)) >= upto
                    self.slots[slot] = self.text(source)[:upto]
                case _:
                    raise AssertionError(f"{move} asserts inside llama.cpp")


class Request:
    def __init__(self, prompt, cells, admission):
        self.prompt = prompt
        self.cells = cells
        self.slot = admission.sequence
        self.kept = self.cached = admission.cached
        self.text = prompt.tolist()

    @property
    def decoded(self):
        return np.array(self.text[: self.kept], dtype=np.int32)


class Engine:
    """Requests of one cache, decoded into `Streams`."""

    def __init__(self, count, share, cap):
        self.cache = SplitCache(count, share, cap)
        self.memory = Streams()
        self.running = []

    def admit(self, prompt, limit=8):
        decoded = {request.slot: min(request.kept, len(request.prompt)) for request in self.running}
        admission = self.cache.admit(prompt, len(prompt) + limit, decoded)
        if isinstance(admission, NoSlotReason):
            return admission
        self.memory.perform(admission.moves)
        request = Request(prompt, len(prompt) + limit, admission)
        assert self.memory.text(request.slot) == prompt[: request.cached].tolist()
        assert request.cached < len(prompt)
        self.running.append(request)
        return request

    def decode(self, request, count=10**6):
        for _ in range(min(count, request.cells - request.kept)):
            if request.kept == len(request.text):
                request.text.append(1000 + request.kept)
            self.memory.slots.setdefault(request.slot, []).append(request.text[request.kept])
            request.kept += 1

    def finish(self, request):
        self.running.remove(request)
        self.memory.perform(self.cache.finish(request.slot, request.decoded))

    def drop(self, request):
        self.running.remove(request)
        self.memory.perform(self.cache.drop(request.slot))

    def serve(self, prompt, limit=8):
        request = self.admit(prompt, limit)
        self.decode(request)
        self.finish(request)
        return request


class Model(CacheRules):
    """Random admissions, decodes and ends."""

    @initialize(count=st.integers(1, 5), share=st.integers(40, 300), cap=st.sampled_from([0, 70, 10**6]))
    def begin(self, count, share, cap):
        self.engine = Engine(count, share, cap)

    @rule(**families, limit=st.integers(1, 40))
    def submit(self, limit, **shape):
        """It waits only for room, or for a beginning that is being decoded."""
        prompt = family(**shape)
        limit = min(limit, self.engine.cache.share - len(prompt))
        if limit < 1:
            return
        before = {slot: list(text) for slot, text in self.engine.memory.slots.items()}
        match self.engine.admit(prompt, limit):
            case NoSlotReason.ROOM:
                assert len(self.engine.running) == self.engine.cache.count
            case NoSlotReason.PREFIX:
                assert any(request.kept + WORTH_WAITING <= len(prompt) for request in self.engine.running)
            case _:
                return
        assert self.engine.memory.slots == before

    @invariant()
    def every_slot_has_the_tokens_of_its_owner_and_no_others(self):
        cache, memory = self.engine.cache, self.engine.memory
        owned = {request.slot: request.decoded.tolist() for request in self.engine.running}
        assert len(owned) == len(self.engine.running) == cache.busy <= cache.count
        for slot in cache.retained:
            assert slot not in owned
            owned[slot] = cache.tokens(slot).tolist()
        assert all(text == owned.get(slot, []) for slot, text in memory.slots.items())
        assert sum(len(cache.tokens(slot)) for slot in cache.retained) <= cache.cap


TestModel = Model.TestCase


@pytest.fixture
def engine():
    return Engine(4, 500, 10**6)


def test_running_slots_follow_each_other(engine):
    """Numbers with a gap between them would be decoded one after another."""
    requests = [engine.admit(run(100 * number, 100 * number + 50)) for number in range(4)]
    assert sorted(request.slot for request in requests) == [0, 1, 2, 3]
    for request in requests:
        engine.decode(request)
    for request in sorted(requests, key=lambda request: request.slot)[:3]:
        engine.finish(request)
    assert engine.admit(run(900, 950)).slot == 2


def test_prompts_one_after_another_keep_each_its_slot(engine):
    """Alone any slot is as good, so what is retained in the others stays."""
    slots = [engine.serve(run(100 * number, 100 * number + 50)).slot for number in range(4)]
    assert sorted(slots) == [0, 1, 2, 3]
    assert [engine.serve(run(100 * number, 100 * number + 50)).cached for number in range(4)] == [49] * 4
    assert engine.serve(run(700, 750)).slot == slots[0]


def test_the_next_turn_of_a_chat_continues_in_place(engine):
    """Prompt and answer of the turn before are there, in the same slot."""
    first = engine.serve(run(0, 100), limit=20)
    history = engine.cache.tokens(first.slot)
    request = engine.admit(np.concatenate((history, run(500, 530))))
    assert (request.slot, request.cached) == (first.slot, 120)


def test_a_running_request_lends_a_copy_of_its_prompt(engine):
    """The other has it in its own slot; either may end first."""
    first = engine.admit(run(0, 100), 50)
    engine.decode(first, 80)
    second = engine.admit(run(0, 100), 50)
    assert second.slot != first.slot
    assert second.cached == 80
    engine.finish(first)
    engine.decode(second)
    assert engine.memory.text(second.slot)[:100] == list(range(100))


def test_a_beginning_too_short_to_copy_is_decoded_anew(engine):
    """A copy moves the whole cache of a slot."""
    first = engine.admit(run(0, 15), 50)
    engine.decode(first, 20)
    assert engine.admit(run(0, 100), 50).cached == 0


def test_what_is_longer_than_the_cap_is_kept_in_part():
    """The beginning of a long prompt is of use without its end; what others left goes for it."""
    engine = Engine(2, 500, 120)
    engine.serve(run(0, 60))
    long = engine.serve(run(1000, 1300))
    assert len(engine.cache.tokens(long.slot)) == 120
    assert engine.cache.retained == (long.slot,)
    assert engine.serve(run(1000, 1300)).cached == 120
