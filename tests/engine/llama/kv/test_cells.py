# SPDX-License-Identifier: GPL-3.0-only
"""Admissions, batches, aborts, cancels and evictions against a KV cache on paper.

The engine's loop in small, without llama.cpp: a queue, batches with chunks of prompts, decodes that are
aborted or fail. The model on paper says a token that depends on all it reads, so that one wrong cell
gives another text than the request has alone.
"""

from __future__ import annotations

import zlib

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.kv_cache import KvCache

from modeld.engine.llama.kv.prefix_cache import NoSlotReason, PrefixCache
from modeld.engine.llama.kv.slots import Slots

TOKENS = 50


def next_token(read):
    """Return what the model on paper says after these tokens."""
    return zlib.crc32(bytes(read)) % TOKENS


def alone(prompt, limit):
    """Return the answer to a prompt that nobody shares a cache with."""
    text = list(prompt)
    for _ in range(limit):
        text.append(next_token(text))
    return text[len(prompt) :]


class Request:
    def __init__(self, prompt, limit):
        self.prompt = prompt
        self.limit = limit
        self.sequence = None
        self.kept = 0
        self.answer = []

    @property
    def text(self):
        return self.prompt + self.answer

    @property
    def cells(self):
        return len(self.prompt) + self.limit


class Loop(RuleBasedStateMachine):
    """What the engine does with its slots, its cache and its memory, step by step."""

    @initialize(
        count=st.integers(1, 4),
        cells=st.integers(24, 120),
        extra=st.integers(0, 5),
        retaining=st.tuples(st.integers(0, 120), st.booleans()),
        batch=st.integers(5, 40),
    )
    def begin(self, count, cells, extra, retaining, batch):
        cap, yields = retaining
        self.slots = Slots(count, cells, count + extra)
        self.cache = PrefixCache(self.slots, min(cap, cells), yields=yields)
        self.memory = KvCache(cells)
        self.batch = batch
        self.waiting = []
        self.running = []

    @rule(
        root=st.integers(0, 2),
        shared=st.integers(0, 90),
        rest=st.lists(st.integers(0, TOKENS - 1), max_size=12),
        limit=st.integers(1, 20),
    )
    def submit(self, root, shared, rest, limit):
        """Prompts of three families that part from each other at many places."""
        prompt = [(root + place * place) % TOKENS for place in range(shared)] + rest
        room = self.slots.cells - len(prompt)
        if prompt and room >= 1:
            self.waiting.append(Request(prompt, min(limit, room)))

    @rule()
    def step(self):
        """Admit in order, decode a batch, sample."""
        self.admit()
        for request, tokens in self.schedule():
            for token in tokens:
                self.decode(request, token)
            if request.kept == len(request.text):
                self.sample(request)

    @precondition(lambda self: self.running or self.waiting)
    @rule(lost=st.integers(1, 40))
    def aborted_step(self, lost):
        """A decode that is aborted has written some of its tokens, or none; the rest is sent again."""
        self.admit()
        batch = [(request, token) for request, tokens in self.schedule() for token in tokens]
        for request, token in batch[: max(0, len(batch) - lost)]:
            self.decode(request, token)
        for request in self.running:  # A row whose logits are lost has to come out again.
            if request.kept == len(request.text):
                request.kept -= 1
                self.memory.cut(request.sequence, request.kept)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9))
    def cancel(self, which):
        """In prefill or while it generates: what it decoded may be retained."""
        self.finish(self.running[which % len(self.running)])

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 9))
    def cancel_waiting(self, which):
        self.waiting.pop(which % len(self.waiting))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9))
    def fail(self, which):
        """Nothing of it may be retained."""
        request = self.running.pop(which % len(self.running))
        self.memory.perform(self.cache.drop(request.sequence))

    @precondition(lambda self: self.cache.retained)
    @rule(which=st.integers(0, 9))
    def forget(self, which):
        retained = self.cache.retained
        self.memory.perform(self.cache.forget(retained[which % len(retained)]))

    @rule()
    def run_to_the_end(self):
        """Everybody is served: nobody waits for what never comes."""
        for _ in range(10_000):
            if not self.running and not self.waiting:
                break
            self.step()
        assert not self.running
        assert not self.waiting
        assert self.memory.used == self.slots.idle_cells == self.slots.cells - self.slots.free_cells

    def admit(self):
        while self.waiting:
            request = self.waiting[0]
            decoded = {other.sequence: min(other.kept, len(other.prompt)) for other in self.running}
            prompt = np.array(request.prompt, dtype=np.int32)
            before = self.slots.free_cells, self.cache.retained
            admission = self.cache.admit(prompt, request.cells, decoded)
            if isinstance(admission, NoSlotReason):
                assert (self.slots.free_cells, self.cache.retained) == before
                assert self.running, "it waits, and nobody is there to wait for"
                return
            self.memory.perform(admission.moves)
            request.sequence, request.kept = admission.sequence, admission.cached
            assert request.kept < len(request.prompt)
            self.running.append(self.waiting.pop(0))

    def schedule(self):
        """Return what each request has in the next batch: streams first, then prompts."""
        streams = [request for request in self.running if request.answer]
        batch = [(request, request.text[request.kept :]) for request in streams]
        room = self.batch - len(streams)
        for request in self.running:
            if not request.answer and room > 0:
                batch.append((request, request.prompt[request.kept : request.kept + room]))
                room -= len(batch[-1][1])
        return batch

    def decode(self, request, token):
        self.memory.write(request.sequence, request.kept, token)
        request.kept += 1

    def sample(self, request):
        """What comes out depends on everything that is read."""
        request.answer.append(next_token(self.memory.read(request.sequence)))
        if len(request.answer) == request.limit:
            assert request.answer == alone(request.prompt, request.limit)
            self.finish(request)

    def finish(self, request):
        self.running.remove(request)
        decoded = np.array(request.text[: request.kept], dtype=np.int32)
        self.memory.perform(self.cache.finish(request.sequence, decoded))

    @invariant()
    def every_read_sees_the_right_tokens(self):
        known = {request.sequence: request.text[: request.kept] for request in self.running}
        assert len(known) == len(self.running)
        for sequence in self.cache.retained:
            assert sequence not in known
            known[sequence] = self.cache.tokens(sequence).tolist()
        assert {sequence: self.memory.read(sequence) for sequence in known} == known
        assert self.memory.sequences <= known.keys()

    @invariant()
    def what_is_promised_is_there(self):
        to_come = sum(request.cells - request.kept for request in self.running)
        assert self.memory.used + to_come == self.slots.cells - self.slots.free_cells <= self.slots.cells
        assert self.slots.idle_cells <= self.cache.allowance
        assert self.slots.busy == len(self.running) <= self.slots.count


TestLoop = Loop.TestCase
