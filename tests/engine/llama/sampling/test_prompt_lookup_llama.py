# SPDX-License-Identifier: GPL-3.0-only
"""Prompt lookup in the real engine: the same text in fewer steps, and nothing left behind.

The tiny model computes with flash attention, which gives the same bits however tokens are batched.
"""

from __future__ import annotations

import random

import pytest
from support.engine_driver import GREEDY, EngineDriver, generate_request
from support.tiny_llama import FIRST_BYTE
from support.tiny_memories import write_hybrid, write_recurrent, write_windowed

from modeld.domain.request import Constraint, ConstraintKind, Sampling
from modeld.domain.request_events import FinishReason
from modeld.engine.llama.native.library import lib
from modeld.engine.protocol import RequestAdmitted, RequestDone, TokenOutput

MOST = 8
OPTIONS = {"slots": 2, "ctx": 512, "ubatch": 64, "flash_attn": True}


@pytest.fixture
def driver(tiny_lab):
    return tiny_lab.driver(**OPTIONS)


def letters(text):
    return [FIRST_BYTE + byte for byte in text.encode()]


def prompts(count):
    """Return texts of which half repeat themselves."""
    chooser = random.Random(5)  # noqa: S311  # a seed that repeats it, no secret
    for number in range(count):
        text = "".join(chooser.choice("abcdefgh ") for _ in range(chooser.randrange(3, 30)))
        yield text * (3 if number % 2 else 1)


def steps(driver, request):
    """Serve one request; return (its id, the steps that took)."""
    request_id = driver.submit(request)
    count = 0
    while driver.engine.busy:
        driver.step()
        count += 1
    return request_id, count


def cells(driver):
    """Return how many cells each sequence has in llama.cpp's own account."""
    memory = driver.engine._model.memory
    return {
        sequence: lib.llama_memory_seq_pos_max(memory, sequence) + 1
        for sequence in range(driver.engine._model.sequences)
    }


def expected_cells(driver):
    """Return what the engine believes to be there."""
    return {job.slot: job.kept for job in driver.engine._running}


SAMPLINGS = [GREEDY, Sampling(seed=3, temperature=0.3), Sampling(temperature=0.0, repeat_penalty=1.3)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_guess_never_changes_a_text(driver, sampling):
    """With and without, twenty texts are the same, drawn with a seed and with penalties too."""
    drafted = 0
    for prompt in prompts(20):
        plain, last = driver.generate(generate_request(prompt, max_tokens=60, sampling=sampling))
        guessed, ahead = driver.generate(
            generate_request(prompt, max_tokens=60, sampling=sampling, lookup=MOST)
        )
        assert guessed == plain
        assert ahead.reason is last.reason
        assert ahead.usage.completion_tokens == last.usage.completion_tokens
        drafted += ahead.usage.drafted_tokens
    assert drafted


def test_neighbours_do_not_notice(driver):
    """Two texts with guesses side by side are what each is alone."""
    requests = [
        generate_request(prompt, max_tokens=50, lookup=MOST, ignore_eos=True) for prompt in prompts(8)
    ]
    alone = [driver.generate(request)[0] for request in requests]
    assert [driver.text(request_id) for request_id in driver.run(*requests)] == alone


def forced(text):
    """Return a grammar that allows one text alone, so that what comes is known."""
    return Constraint(kind=ConstraintKind.GRAMMAR, text=f'root ::= "{text}"')


def test_a_repetitive_text_takes_fewer_steps(driver):
    """Where guesses come true several tokens come of one step, each with its log-probabilities."""
    request = {"max_tokens": 200, "constraint": forced("abcdefgh" * 12), "logprobs": 1}
    plain, many = steps(driver, generate_request("abcdefgh" * 3, **request))
    ahead, few = steps(driver, generate_request("abcdefgh" * 3, lookup=MOST, **request))
    assert driver.text(ahead) == driver.text(plain) == "abcdefgh" * 12
    assert few < many / 3
    usage = driver.last(ahead).usage
    assert usage.completion_tokens == 96
    assert usage.drafted_tokens >= usage.accepted_tokens > 60
    told = [
        [
            entry.chosen.token_id
            for output in driver.outputs[one]
            if isinstance(output, TokenOutput)
            for entry in output.logprobs
        ]
        for one in (plain, ahead)
    ]
    assert told[0] == told[1] == letters("abcdefgh" * 12)


def test_a_text_that_goes_another_way_is_cut_back(driver):
    """After a wrong guess the cache holds what was drawn and nothing else, in every step."""
    request = generate_request(
        "abcabcabc", max_tokens=100, constraint=forced("abcabdabcabeabcabf" * 4), lookup=MOST
    )
    request_id = driver.submit(request)
    wrong = 0
    while driver.engine.busy:
        driver.step()
        for slot, kept in expected_cells(driver).items():
            assert cells(driver)[slot] == kept
        wrong = max([wrong, *(job.drafted - job.accepted for job in driver.engine._running)])
    assert wrong
    assert driver.text(request_id) == "abcabdabcabeabcabf" * 4


@pytest.mark.parametrize("limit", range(1, 12))
def test_no_guess_goes_beyond_the_limit(driver, limit):
    """`max_tokens` holds to the token, and the cells that were reserved suffice."""
    text, last = driver.generate(
        generate_request("ab" * 20, max_tokens=limit, constraint=forced("ab" * 40), lookup=MOST)
    )
    assert text == ("ab" * 40)[:limit]
    assert (last.reason, last.usage.completion_tokens) == (FinishReason.LENGTH, limit)


def test_a_stop_within_a_guess_ends_the_text_there(driver):
    """What was guessed beyond the stop is neither shown nor counted nor kept."""
    request = generate_request(
        "abcdefgh" * 4, max_tokens=99, constraint=forced("abcdefgh" * 9), stop=("efgh",), lookup=MOST
    )
    text, last = driver.generate(request)
    assert text == "abcd"
    assert (last.reason, last.usage.completion_tokens) == (FinishReason.STOP, 8)
    text, last = driver.generate(
        generate_request(
            "abcdefgh" * 4,
            max_tokens=99,
            constraint=forced("abcdefgh" * 9),
            stop_tokens=letters("f"),
            lookup=MOST,
        )
    )
    assert (text, last.reason) == ("abcde", FinishReason.STOP)


def test_a_cancel_amid_guesses_leaves_no_cell(tiny_lab):
    """Cancelled between steps or in a decode, nothing of it stays in the cache."""
    driver = EngineDriver(tiny_lab.load(**OPTIONS, prefix_cells=0))
    for interrupted in (False, True):
        request = generate_request(
            "abcdefgh" * 4, max_tokens=150, constraint=forced("abcdefgh" * 20), lookup=MOST
        )
        request_id = driver.submit(request)
        driver.until(TokenOutput, request_id)
        for _ in range(4):
            driver.step()
        if interrupted:
            driver.engine.interrupt()
            driver.step()
            (job,) = driver.engine._running
            assert cells(driver)[job.slot] <= job.kept
        driver.engine.cancel(request_id)
        driver.finish()
        assert driver.last(request_id).reason is FinishReason.CANCELLED
        assert set(cells(driver).values()) == {0}
    driver.engine.close()


def test_an_interrupt_amid_guesses_loses_nothing(driver):
    """The text is the same however often a decode was interrupted, also where a prompt comes between."""
    request = generate_request("abcdefgh" * 4, max_tokens=60, ignore_eos=True)
    plain, _ = driver.generate(request)
    request_id = driver.submit(generate_request("abcdefgh" * 4, max_tokens=60, ignore_eos=True, lookup=MOST))
    count = 0
    while driver.engine.busy:
        count += 1
        if count % 3 == 0:
            driver.engine.interrupt()
            driver.step()
            driver.submit(generate_request("another prompt", max_tokens=1))
        driver.step()
    assert driver.text(request_id) == plain
    assert driver.last(request_id).usage.drafted_tokens


@pytest.mark.real
def test_the_real_model_says_the_same_in_fewer_steps(real_lab):
    """Twenty greedy texts, repetitive ones among them, are the same, in a fifth fewer steps at least."""
    driver = real_lab.driver(slots=1, ctx=1024, threads=2, flash_attn=True)
    tale = "The fox jumps over the dog. The dog sleeps. "
    subjects = [
        "Once upon a time",
        "The capital of France is",
        "def add(a, b):",
        "1, 2, 3, 1, 2, 3,",
        tale * 3,
    ]
    taken = {0: 0, MOST: 0}
    for number in range(20):
        prompt = f"{subjects[number % 5]}{' and' * (number // 5)}"
        texts = set()
        for most in taken:
            request_id, count = steps(
                driver, generate_request(prompt, max_tokens=40, lookup=most, ignore_eos=True)
            )
            texts.add(driver.text(request_id))
            taken[most] += count
        assert len(texts) == 1, prompt
    assert taken[MOST] < 0.8 * taken[0]


@pytest.mark.parametrize("write", [write_windowed, write_recurrent, write_hybrid])
def test_a_memory_that_cannot_be_wound_back_goes_without(tiny_lab, tmp_path, write):
    """Windowed, recurrent and hybrid models serve the request as if nothing had been asked for."""
    path = tmp_path / "other.gguf"
    path = write(path, 32) if write is write_windowed else write(path)
    driver = EngineDriver(tiny_lab.load(path=path, slots=1, ctx=256))
    plain, _ = driver.generate(generate_request("abcabcabc", max_tokens=40, ignore_eos=True))
    ahead, last = driver.generate(generate_request("abcabcabc", max_tokens=40, ignore_eos=True, lookup=MOST))
    assert ahead == plain
    assert last.usage.drafted_tokens == 0
    driver.engine.close()


def test_guesses_end_where_the_context_shifts(tiny_lab):
    """A text that goes on beyond its context shifts at the same token, and is the same."""
    driver = EngineDriver(
        tiny_lab.load(slots=1, ctx=256, flash_attn=True, context_shift=True, prefix_cells=0)
    )
    plain, last = driver.generate(generate_request("abcabcabc", max_tokens=600, ignore_eos=True))
    ahead, guessed = driver.generate(
        generate_request("abcabcabc", max_tokens=600, ignore_eos=True, lookup=MOST)
    )
    assert last.usage.completion_tokens == 600
    assert ahead == plain
    assert guessed.usage.accepted_tokens
    driver.engine.close()


@pytest.mark.parametrize("prefix_cells", [0, None])
def test_guesses_end_where_the_rows_of_logits_do(tiny_lab, prefix_cells):
    """Neither the rows of logits nor the batch is ever too small, however few there are to spare."""
    driver = EngineDriver(tiny_lab.load(**OPTIONS | {"ubatch": 4}, prefix_cells=prefix_cells))
    driver.run(
        *(
            generate_request("ab" * 20, max_tokens=30, constraint=forced("ab" * 40), lookup=MOST)
            for _ in range(5)
        )
    )
    assert all(driver.last(request_id).reason is FinishReason.LENGTH for request_id in driver.outputs)
    assert {type(outputs[0]) for outputs in driver.outputs.values()} == {RequestAdmitted}
    assert {type(outputs[-1]) for outputs in driver.outputs.values()} == {RequestDone}
    driver.engine.close()
