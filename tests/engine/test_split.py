# SPDX-License-Identifier: GPL-3.0-only
"""A split KV cache: its layout, its bookkeeping without llama.cpp, and how `auto` gives it up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.engines import Bench, ask
from support.tiny_gguf import write_model

from modeld.core.events import FinishReason
from modeld.core.models import LoadOptions
from modeld.engine.llama.layout import first_layout, unified_layout
from modeld.engine.llama.library import lib
from modeld.engine.llama.prefix import WORTH_WAITING, Copy, Cut, Wait
from modeld.engine.llama.split import SplitCache, order
from modeld.engine.protocol import Admitted, Broken, Done, Tokens
from modeld.errors import ModelFailed, PromptTooLong


def options(**more):
    return LoadOptions(**{"ctx": 8192, "slots": 4} | more)


def run(begin, end):
    return np.arange(begin, end, dtype=np.int32)


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
    """One slot, shares below a group of cells, or cells to retain beside streams: one cache."""
    assert first_layout(options(**more), 8192) == unified_layout(options(**more), 8192)


def test_who_asks_for_shares_gets_them():
    """Also small ones: llama.cpp has a group of cells at the least."""
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
                case Cut(sequence=slot, keep=keep):
                    self.slots[slot] = self.text(slot)[:keep]
                case Copy(source=source, sequence=slot, upto=upto):
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
        if isinstance(admission, Wait):
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

    def serve(self, prompt, limit=8):
        request = self.admit(prompt, limit)
        self.decode(request)
        self.finish(request)
        return request


class Model(RuleBasedStateMachine):
    """Random admissions, decodes and ends."""

    @initialize(count=st.integers(1, 5), share=st.integers(40, 300), cap=st.sampled_from([0, 70, 10**6]))
    def begin(self, count, share, cap):
        self.engine = Engine(count, share, cap)

    @rule(
        root=st.integers(0, 2),
        parts=st.integers(1, 120),
        turn=st.integers(0, 2),
        rest=st.integers(0, 60),
        limit=st.integers(1, 40),
    )
    def submit(self, root, parts, turn, rest, limit):
        """Prompts of three families that part from each other at many places."""
        prompt = np.concatenate((run(root * 100, root * 100 + parts), run(turn * 100, turn * 100 + rest)))
        limit = min(limit, self.engine.cache.share - len(prompt))
        if limit < 1:
            return
        before = {slot: list(text) for slot, text in self.engine.memory.slots.items()}
        match self.engine.admit(prompt, limit):
            case Wait.ROOM:
                assert len(self.engine.running) == self.engine.cache.count
            case Wait.PREFIX:
                assert any(request.kept + WORTH_WAITING <= len(prompt) for request in self.engine.running)
            case _:
                return
        assert self.engine.memory.slots == before

    @precondition(lambda self: self.engine.running)
    @rule(which=st.integers(0, 9), count=st.integers(1, 120))
    def decode(self, which, count):
        self.engine.decode(self.engine.running[which % len(self.engine.running)], count)

    @precondition(lambda self: self.engine.running)
    @rule(which=st.integers(0, 9))
    def finish(self, which):
        """A request ends or is cancelled, wherever it is."""
        self.engine.finish(self.engine.running[which % len(self.engine.running)])

    @precondition(lambda self: self.engine.running)
    @rule(which=st.integers(0, 9))
    def drop(self, which):
        request = self.engine.running.pop(which % len(self.engine.running))
        self.engine.memory.perform(self.engine.cache.drop(request.slot))

    @precondition(lambda self: self.engine.cache.retained)
    @rule(which=st.integers(0, 9))
    def forget(self, which):
        retained = self.engine.cache.retained
        self.engine.memory.perform(self.engine.cache.forget(retained[which % len(retained)]))

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


# in llama.cpp

LONG = "abcdefgh ijklmnop qrstuvwx " * 10


@pytest.fixture
def bench(tiny_lab):
    bench = Bench(tiny_lab.load(slots=3, ctx=768, ubatch=32))
    yield bench
    bench.engine.close()


def wide(tiny_lab, tmp_path):
    """Return an engine whose shares are below the trained context."""
    path = write_model(tmp_path / "wide.gguf", context=1024)
    return Bench(tiny_lab.load(path=path, slots=2, ctx=1024, ubatch=64))


def test_a_request_that_needs_more_than_its_share_gets_all_there_is(tiny_lab, tmp_path):
    """It waits for the one that runs, then the cache becomes one, and the texts stay the same."""
    bench = wide(tiny_lab, tmp_path)
    short = ask("hello", max_tokens=30, ignore_eos=True)
    text, _ = bench.generate(short)
    assert not bench.engine._model.layout.unified
    assert bench.engine.info.context == bench.engine.info.cells == 1024
    running = bench.submit(short)
    bench.until(Tokens, running)
    long = bench.submit(ask("x " * 200, max_tokens=800, ignore_eos=True))
    behind = bench.submit(short)
    bench.finish()
    assert bench.engine._model.layout.unified
    assert bench.last(long).usage.completion_tokens + bench.last(long).usage.prompt_tokens > 512
    assert bench.last(long).reason is FinishReason.LENGTH
    admitted = [output.id for output in bench.order if isinstance(output, Admitted)]
    assert admitted[-3:] == [running, long, behind]
    assert bench.text(running) == bench.text(behind) == text
    assert bench.generate(short)[0] == text
    bench.engine.close()


def test_an_interrupt_while_the_cache_becomes_one_costs_no_prefix_cache(tiny_lab, tmp_path):
    """A cancel of somebody else that comes right then does not pass for a memory that cannot be shared."""
    bench = wide(tiny_lab, tmp_path)
    long = ask("x " * 200, max_tokens=800, ignore_eos=True)
    bench.submit(long)
    bench.engine.interrupt()
    bench.finish()
    assert bench.engine._model.layout.unified
    assert bench.generate(long)[1].usage.cached_tokens > 200
    bench.engine.close()


def test_explicit_shares_are_the_context_of_a_request(tmp_path, tiny_lab):
    """A prompt that is too long for its share is refused with the numbers; an answer ends there."""
    path = write_model(tmp_path / "wide.gguf", context=1024)
    bench = Bench(tiny_lab.load(path=path, slots=2, ctx=1024, ubatch=64, kv_unified=False))
    assert (bench.engine.info.context, bench.engine.info.cells) == (512, 1024)
    _, last = bench.generate(ask("x " * 600))
    assert isinstance(last, Broken)
    assert last.problem.kind == PromptTooLong.kind
    _, last = bench.generate(ask("hello", max_tokens=2000, ignore_eos=True))
    assert last.usage.prompt_tokens + last.usage.completion_tokens == 512
    bench.engine.close()


def test_a_cache_that_cannot_be_made_anew_is_said_and_ends_the_engine(tiny_lab, tmp_path, monkeypatch):
    """No memory for the new context: the owner is told, and `close` still works."""
    bench = wide(tiny_lab, tmp_path)
    bench.submit(ask("x " * 200, max_tokens=800))
    monkeypatch.setattr(lib, "llama_init_from_model", lambda *_: None)
    with pytest.raises(ModelFailed, match="1024 KV cells"):
        bench.finish()
    bench.engine.close()


def test_random_requests_leave_the_memory_as_the_accounts_say(bench, tiny_lab):
    """Whatever is submitted, cancelled and interrupted, each slot holds what is known of it."""
    chooser = np.random.default_rng(3)
    prompts = [LONG[:length] + end for length in (20, 90, 180) for end in ("", "x", "yz")]
    plain = tiny_lab.bench(slots=3, ctx=768, ubatch=32, prefix_cells=0, kv_unified=True)
    texts = {prompt: plain.generate(ask(prompt, max_tokens=24, ignore_eos=True))[0] for prompt in prompts}
    asked = {}
    for _ in range(300):
        match int(chooser.integers(5)):
            case 0:
                prompt = prompts[int(chooser.integers(len(prompts)))]
                asked[bench.submit(ask(prompt, max_tokens=24, ignore_eos=True))] = prompt
            case 1 if asked and chooser.random() < 0.3:
                bench.engine.cancel(list(asked)[int(chooser.integers(len(asked)))])
            case 2:
                bench.engine.interrupt()
            case _:
                bench.step()
    bench.finish()
    assert any(bench.last(request_id).usage.cached_tokens for request_id in asked)
    whole = [request_id for request_id in asked if bench.last(request_id).reason is FinishReason.LENGTH]
    assert whole
    for request_id in asked:
        assert isinstance(bench.last(request_id), Done)
    same = sum(bench.text(request_id) == texts[asked[request_id]] for request_id in whole)
    assert same == len(whole)
    cache, memory = bench.engine._places.cache, bench.engine._places.memory
    for slot in range(3):
        kept = len(cache.tokens(slot)) if slot in cache.retained else 0
        assert memory.length(slot) == kept


@pytest.mark.parametrize("more", [{"slots": 1}, {"slots": 2, "kv_unified": True}, {"slots": 2}], ids=str)
def test_a_batch_of_a_token_or_two_is_enough(tiny_lab, more):
    """The trial of the memory fits into it; the text is that of large batches, with a beginning retained."""
    request = ask("hello there", max_tokens=10, ignore_eos=True)
    text, _ = tiny_lab.bench(slots=1, ctx=512).generate(request)
    bench = Bench(tiny_lab.load(ctx=512, ubatch=1, **more))
    assert bench.generate(request)[0] == text
    again, last = bench.generate(request)
    assert again == text
    assert last.usage.cached_tokens > 0
    bench.engine.close()


# the order of a batch


def passes(written, tokens):
    """Return what llama.cpp decodes together, as {slot: tokens} for each pass (its `split_equal`)."""
    left = {slot: tokens[slot] for slot in written}
    made = []
    while left:
        together = [next(slot for slot in written if slot in left)]
        for slot in written:
            if slot in left and slot == together[-1] + 1:
                together.append(slot)
        count = min(left[slot] for slot in together)
        made.append(dict.fromkeys(together, count))
        left = {slot: rest - made[-1].get(slot, 0) for slot, rest in left.items()}
        left = {slot: rest for slot, rest in left.items() if rest}
    return made


@pytest.mark.parametrize(
    ("streams", "prompts", "expected"),
    [
        ((0, 1, 2, 3), (4,), [{4: 8}, {0: 1, 1: 1, 2: 1, 3: 1}]),
        ((1, 2, 3, 4), (0,), [{1: 1, 2: 1, 3: 1, 4: 1}, {0: 8}]),
        ((0, 1), (2, 3), [{2: 8, 3: 8}, {0: 1, 1: 1}]),
        ((5, 2), (3,), [{3: 8}, {2: 1}, {5: 1}]),
        ((0, 2), (1,), [{0: 1, 1: 1, 2: 1}, {1: 7}]),
    ],
    ids=str,
)
def test_a_chunk_of_a_prompt_is_decoded_apart_from_streams(streams, prompts, expected):
    """In a pass of its own, whole, unless a slot between two streams makes that impossible."""
    written = order(streams, prompts)
    assert sorted(written) == sorted((*streams, *prompts))
    assert passes(written, dict.fromkeys(streams, 1) | dict.fromkeys(prompts, 8)) == expected
