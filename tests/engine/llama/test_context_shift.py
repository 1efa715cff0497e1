# SPDX-License-Identifier: GPL-3.0-only
"""At the end of the context a generation ends with `length`, or goes on without its middle."""

from __future__ import annotations

import pytest
from support.engine_driver import EngineDriver, generate_request
from support.kv_accounting import assert_kv_at_rest, assert_kv_matches
from support.tiny_memories import write_hybrid, write_recurrent

from modeld.domain.request_events import FinishReason
from modeld.engine.protocol import TokenOutput

CONTEXT = 256


@pytest.fixture(params=[None, True], ids=["a cache each", "one cache"])
def driver(tiny_lab, request):
    driver = EngineDriver(
        tiny_lab.load(slots=2, ctx=2 * CONTEXT, ubatch=64, context_shift=True, kv_unified=request.param)
    )
    yield driver
    assert_kv_at_rest(driver.engine)
    driver.engine.close()


def test_without_the_option_a_generation_ends_at_the_context(tiny_lab):
    """It says `length`, and has all the room there was."""
    driver = tiny_lab.driver(slots=2, ctx=2 * CONTEXT, ubatch=64)
    _, last = driver.generate(generate_request("hello", max_tokens=1000, ignore_eos=True))
    assert last.reason is FinishReason.LENGTH
    assert last.usage.prompt_tokens + last.usage.completion_tokens == CONTEXT


def test_a_generation_goes_on_over_the_end_of_the_context(driver, tiny_lab):
    """Several shifts long; until the first it is the text of a context without shifts."""
    plain = tiny_lab.driver(slots=2, ctx=2 * CONTEXT, ubatch=64)
    request = generate_request("hello there", max_tokens=1000, ignore_eos=True)
    before, _ = plain.generate(request)
    text, last = driver.generate(request)
    assert (last.reason, last.usage.completion_tokens) == (FinishReason.LENGTH, 1000)
    assert text.startswith(before)
    assert len(text) > len(before)


def test_positions_stay_within_the_context_and_the_accounts_agree(driver):
    """At every step, with a neighbour that notices nothing."""
    request = generate_request("a neighbour", max_tokens=150, ignore_eos=True)
    alone, _ = driver.generate(request)
    long = driver.submit(generate_request("hello there", max_tokens=700, ignore_eos=True))
    driver.until(TokenOutput, long)
    neighbour = driver.submit(request)
    while driver.engine.busy:
        driver.step()
        assert all(job.kept <= job.context <= 2 * CONTEXT for job in driver.engine._running)
        assert_kv_matches(driver.engine)
    assert driver.text(neighbour) == alone
    assert driver.tokens(long) == 700


def test_what_follows_a_shift_is_not_lent_to_others(driver):
    """The prompt may serve the next request, and gives the same text; the shifted rest does not."""
    request = generate_request("hello there", max_tokens=100, ignore_eos=True)
    text, last = driver.generate(request)
    driver.generate(generate_request("hello there", max_tokens=1000, ignore_eos=True))
    cache = driver.engine._places.cache
    prompt = last.usage.prompt_tokens
    assert all(len(cache.tokens(sequence)) <= prompt + 100 for sequence in cache.retained)
    assert driver.generate(request)[0] == text


def test_a_prompt_of_most_of_the_context_is_shifted_too(driver, tiny_lab):
    """Of such a prompt the first half of the context stays."""
    context = driver.engine.info.context
    prompt = tiny_lab.prompt(context - 10)
    _, last = driver.generate(generate_request(prompt, max_tokens=300, ignore_eos=True))
    assert last.usage.completion_tokens == 300


@pytest.mark.parametrize("times", [8, 22], ids=["short prompt", "prompt of most of the context"])
def test_cells_that_are_shifted_are_shared_with_nobody(driver, times):
    """Two requests with one prompt at once, over the end: each alone says the same.

    Of the longer prompt a part is shifted, too. In one cache for all nothing is lent; else it is copied.
    """
    request = generate_request("abcdefgh " * times, max_tokens=400, ignore_eos=True, logprobs=0)
    (alone,) = driver.run(request)
    first, second = driver.run(request, request)
    for request_id in (first, second):
        assert driver.text(request_id) == driver.text(alone)
        assert driver.logprobs(request_id) == pytest.approx(driver.logprobs(alone), abs=0.01)
    if driver.engine._model.layout.unified:
        assert {driver.outputs[request_id][0].cached_tokens for request_id in (first, second)} == {0}


def test_an_interrupt_spares_a_shift(driver):
    """A cancel that comes while keys are turned to their new positions does not turn some of them twice."""
    request = generate_request("hello there", max_tokens=700, ignore_eos=True, logprobs=1)
    (alone,) = driver.run(request)
    again = driver.submit(request)
    interrupts = 0
    while driver.engine.busy:
        if any(job.kept >= job.context for job in driver.engine._running):
            driver.engine.interrupt()
            interrupts += 1
        driver.step()
    assert interrupts
    assert driver.logprobs(again) == pytest.approx(driver.logprobs(alone))


@pytest.mark.parametrize("write", [write_recurrent, write_hybrid])
def test_a_state_that_cannot_be_shifted_ends_with_the_context(tmp_path, tiny_lab, write):
    """The option is ignored there, and the answer says `length`."""
    driver = EngineDriver(
        tiny_lab.load(path=write(tmp_path / "m.gguf"), slots=1, ctx=256, context_shift=True)
    )
    _, last = driver.generate(generate_request("hello", max_tokens=1000, ignore_eos=True))
    assert last.reason is FinishReason.LENGTH
    assert last.usage.prompt_tokens + last.usage.completion_tokens <= 256
    driver.engine.close()
