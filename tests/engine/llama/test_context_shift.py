# SPDX-License-Identifier: GPL-3.0-only
"""At the end of the context a generation ends with `length`, or goes on without its middle."""

from __future__ import annotations

import pytest
from support.accounts import assert_accounts, assert_at_rest
from support.engines import Bench, ask
from support.tiny_memories import write_hybrid, write_recurrent

from modeld.domain.request_events import FinishReason
from modeld.engine.protocol import Tokens

CONTEXT = 256


@pytest.fixture(params=[None, True], ids=["a cache each", "one cache"])
def bench(tiny_lab, request):
    bench = Bench(
        tiny_lab.load(slots=2, ctx=2 * CONTEXT, ubatch=64, context_shift=True, kv_unified=request.param)
    )
    yield bench
    assert_at_rest(bench.engine)
    bench.engine.close()


def test_without_the_option_a_generation_ends_at_the_context(tiny_lab):
    """It says `length`, and has all the room there was."""
    bench = tiny_lab.bench(slots=2, ctx=2 * CONTEXT, ubatch=64)
    _, last = bench.generate(ask("hello", max_tokens=1000, ignore_eos=True))
    assert last.reason is FinishReason.LENGTH
    assert last.usage.prompt_tokens + last.usage.completion_tokens == CONTEXT


def test_a_generation_goes_on_over_the_end_of_the_context(bench, tiny_lab):
    """Several shifts long; until the first it is the text of a context without shifts."""
    plain = tiny_lab.bench(slots=2, ctx=2 * CONTEXT, ubatch=64)
    request = ask("hello there", max_tokens=1000, ignore_eos=True)
    before, _ = plain.generate(request)
    text, last = bench.generate(request)
    assert (last.reason, last.usage.completion_tokens) == (FinishReason.LENGTH, 1000)
    assert text.startswith(before)
    assert len(text) > len(before)


def test_positions_stay_within_the_context_and_the_accounts_agree(bench):
    """At every step, with a neighbour that notices nothing."""
    request = ask("a neighbour", max_tokens=150, ignore_eos=True)
    alone, _ = bench.generate(request)
    long = bench.submit(ask("hello there", max_tokens=700, ignore_eos=True))
    bench.until(Tokens, long)
    neighbour = bench.submit(request)
    while bench.engine.busy:
        bench.step()
        assert all(job.kept <= job.context <= 2 * CONTEXT for job in bench.engine._running)
        assert_accounts(bench.engine)
    assert bench.text(neighbour) == alone
    assert bench.tokens(long) == 700


def test_what_follows_a_shift_is_not_lent_to_others(bench):
    """The prompt may serve the next request, and gives the same text; the shifted rest does not."""
    request = ask("hello there", max_tokens=100, ignore_eos=True)
    text, last = bench.generate(request)
    bench.generate(ask("hello there", max_tokens=1000, ignore_eos=True))
    cache = bench.engine._places.cache
    prompt = last.usage.prompt_tokens
    assert all(len(cache.tokens(sequence)) <= prompt + 100 for sequence in cache.retained)
    assert bench.generate(request)[0] == text


def test_a_prompt_of_most_of_the_context_is_shifted_too(bench, tiny_lab):
    """Of such a prompt the first half of the context stays."""
    context = bench.engine.info.context
    prompt = tiny_lab.prompt(context - 10)
    _, last = bench.generate(ask(prompt, max_tokens=300, ignore_eos=True))
    assert last.usage.completion_tokens == 300


@pytest.mark.parametrize("times", [8, 22], ids=["short prompt", "prompt of most of the context"])
def test_cells_that_are_shifted_are_shared_with_nobody(bench, times):
    """Two requests with one prompt at once, over the end: each alone says the same.

    Of the longer prompt a part is shifted, too. In one cache for all nothing is lent; else it is copied.
    """
    request = ask("abcdefgh " * times, max_tokens=400, ignore_eos=True, logprobs=0)
    (alone,) = bench.run(request)
    first, second = bench.run(request, request)
    for request_id in (first, second):
        assert bench.text(request_id) == bench.text(alone)
        assert bench.logprobs(request_id) == pytest.approx(bench.logprobs(alone), abs=0.01)
    if bench.engine._model.layout.unified:
        assert {bench.outputs[request_id][0].cached_tokens for request_id in (first, second)} == {0}


def test_an_interrupt_spares_a_shift(bench):
    """A cancel that comes while keys are turned to their new positions does not turn some of them twice."""
    request = ask("hello there", max_tokens=700, ignore_eos=True, logprobs=1)
    (alone,) = bench.run(request)
    again = bench.submit(request)
    interrupts = 0
    while bench.engine.busy:
        if any(job.kept >= job.context for job in bench.engine._running):
            bench.engine.interrupt()
            interrupts += 1
        bench.step()
    assert interrupts
    assert bench.logprobs(again) == pytest.approx(bench.logprobs(alone))


@pytest.mark.parametrize("write", [write_recurrent, write_hybrid])
def test_a_state_that_cannot_be_shifted_ends_with_the_context(tmp_path, tiny_lab, write):
    """The option is ignored there, and the answer says `length`."""
    bench = Bench(tiny_lab.load(path=write(tmp_path / "m.gguf"), slots=1, ctx=256, context_shift=True))
    _, last = bench.generate(ask("hello", max_tokens=1000, ignore_eos=True))
    assert last.reason is FinishReason.LENGTH
    assert last.usage.prompt_tokens + last.usage.completion_tokens <= 256
    bench.engine.close()
