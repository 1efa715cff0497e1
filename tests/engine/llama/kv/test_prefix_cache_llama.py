# SPDX-License-Identifier: GPL-3.0-only
"""The prefix cache in llama.cpp: the same texts with it as without, and models that cannot have one."""

from __future__ import annotations

import random

import numpy as np
import pytest
from support.engine_driver import EngineDriver, generate_request
from support.tiny_llama import FIRST_BYTE
from support.tiny_memories import write_hybrid, write_recurrent, write_windowed

from modeld.domain.request import Constraint, ConstraintKind, Sampling
from modeld.domain.request_events import FinishReason
from modeld.engine.llama.native.library import lib
from modeld.engine.protocol import RequestAdmitted, RequestDone, TokenOutput

SYSTEM = "abcdefgh ijklmnop qrstuvwx "


@pytest.fixture
def driver(tiny_lab):
    driver = EngineDriver(tiny_lab.load(slots=3, ctx=768, ubatch=32, prefix_cells=400, flash_attn=True))
    yield driver
    assert_accounts(driver.engine)
    driver.engine.close()


@pytest.fixture
def plain(tiny_lab):
    return tiny_lab.driver(slots=3, ctx=768, ubatch=32, prefix_cells=0, flash_attn=True)


def cached(driver, request_id):
    """Return the cached tokens of a request; `RequestAdmitted` and `RequestDone` must agree."""
    first, last = driver.outputs[request_id][0], driver.last(request_id)
    assert isinstance(first, RequestAdmitted)
    assert last.usage.cached_tokens == first.cached_tokens
    return first.cached_tokens


def chances(driver, request_id):
    """Return the log-probability of each candidate at each position of an answer."""
    found = [logprobs for output in driver.outputs[request_id][1:-1] for logprobs in output.logprobs]
    return {(place, token.token_id): token.logprob for place, each in enumerate(found) for token in each.top}


def assert_accounts(engine):
    """What llama.cpp holds is what the bookkeeping says, sequence for sequence."""
    cache, memory = engine._places.cache, engine._places.memory
    assert not engine.busy
    assert cache.slots.busy == 0
    lengths = {number: memory.length(number) for number in range(engine._model.sequences)}
    known = {number: len(cache.tokens(number)) for number in cache.retained}
    assert {number: length for number, length in lengths.items() if length} == known
    assert cache.slots.cells - cache.slots.free_cells == cache.slots.idle_cells <= cache.cap


def test_the_second_time_a_prompt_is_not_decoded_again(driver, plain):
    """Its tokens are counted as cached, in both places, and the text is the same."""
    request = generate_request(SYSTEM + "one", max_tokens=20, ignore_eos=True)
    text, _ = plain.generate(request)
    first, second = driver.run(request)[0], driver.run(request)[0]
    assert cached(driver, first) == 0
    assert cached(driver, second) == driver.outputs[second][0].prompt_tokens - 1
    assert driver.text(first) == driver.text(second) == text


def test_prompts_that_part_share_their_beginning(driver, plain):
    """Each has its own text, one after another and side by side."""
    requests = [
        generate_request(SYSTEM + end, max_tokens=20, ignore_eos=True) for end in ("one", "two", "three", "")
    ]
    texts = [plain.generate(request)[0] for request in requests]
    assert len(set(texts)) > 1
    assert [driver.generate(request)[0] for request in requests] == texts
    ids = driver.run(*requests)
    assert [driver.text(request_id) for request_id in ids] == texts
    assert all(cached(driver, request_id) >= len(SYSTEM) for request_id in ids)


def test_a_cancelled_prefill_leaves_what_it_decoded(driver, plain):
    """The next request goes on from there."""
    request = generate_request(SYSTEM * 6, max_tokens=10, ignore_eos=True)
    text, _ = plain.generate(request)
    first = driver.submit(request)
    driver.until(RequestAdmitted, first)
    driver.step()
    driver.step()
    driver.engine.cancel(first)
    driver.finish()
    assert driver.last(first).reason is FinishReason.CANCELLED
    (second,) = driver.run(request)
    assert cached(driver, second) == 64
    assert driver.text(second) == text


def test_the_end_of_one_does_not_harm_who_shares_with_it(driver, plain):
    """While one generates, another shares its prompt, and the first is cancelled."""
    request = generate_request(SYSTEM * 2, max_tokens=60, ignore_eos=True)
    text, _ = plain.generate(request)
    first = driver.submit(request)
    driver.until(TokenOutput, first)
    second = driver.submit(request)
    driver.until(TokenOutput, second)
    assert driver.outputs[second][0].cached_tokens > 50
    driver.engine.cancel(first)
    driver.engine.interrupt()
    driver.finish()
    assert driver.text(second) == text


def test_a_grammar_penalties_and_log_probabilities_are_those_of_the_whole_prompt(driver, plain):
    """What a request asks for does not depend on who decoded its beginning."""
    requests = [
        generate_request(
            SYSTEM,
            constraint=Constraint(kind=ConstraintKind.GRAMMAR, text="root ::= [a-f]{9}"),
            max_tokens=20,
        ),
        generate_request(
            SYSTEM, sampling=Sampling(temperature=0.0, presence_penalty=1000.0), ignore_eos=True
        ),
        generate_request(SYSTEM, sampling=Sampling(temperature=1.5, seed=11), logprobs=3, ignore_eos=True),
    ]
    driver.generate(generate_request(SYSTEM))
    for request in requests:
        (here,), (there,) = driver.run(request), plain.run(request)
        assert cached(driver, here) > 0
        assert driver.text(here) == plain.text(there)
        assert driver.last(here).reason is plain.last(there).reason
        assert chances(driver, here) == pytest.approx(chances(plain, there), abs=1e-5)


def test_values_that_are_no_numbers_are_not_handed_on(driver, monkeypatch):
    """A request with broken logits ends what is retained: it may have begun with the cause."""
    driver.generate(generate_request(SYSTEM))
    assert driver.engine._places.cache.retained
    with monkeypatch.context() as patch:
        patch.setattr("modeld.engine.llama.engine.np.isfinite", np.isnan)
        driver.generate(generate_request(SYSTEM + "more"))
    assert driver.engine._places.cache.retained == ()


def test_random_requests_leave_the_memory_as_the_accounts_say(driver, plain):
    """Whatever is submitted, cancelled and interrupted: whole texts are right, and no cell is lost."""
    chooser = random.Random(5)  # noqa: S311  # a seed that repeats it, no secret
    prompts = [SYSTEM * times + end for times in (1, 2, 4) for end in ("", "x", "yz", "other")]
    texts = {
        prompt: plain.generate(generate_request(prompt, max_tokens=24, ignore_eos=True))[0]
        for prompt in prompts
    }
    asked = {}
    for _ in range(300):
        match chooser.randrange(5):
            case 0:
                prompt = chooser.choice(prompts)
                asked[driver.submit(generate_request(prompt, max_tokens=24, ignore_eos=True))] = prompt
            case 1 if asked and chooser.random() < 0.3:
                driver.engine.cancel(chooser.choice(list(asked)))
            case 2:
                driver.engine.interrupt()
            case _:
                driver.step()
    driver.finish()
    for request_id, prompt in asked.items():
        assert isinstance(driver.last(request_id), RequestDone)
        assert texts[prompt].startswith(driver.text(request_id))
    assert any(driver.last(request_id).usage.cached_tokens for request_id in asked)
    assert_accounts(driver.engine)


@pytest.mark.parametrize("write", [write_recurrent, write_hybrid])
def test_a_recurrent_model_goes_without(tmp_path, tiny_lab, write):
    """A state that cannot be cut serves no other prompt; the texts are right all the same.

    Nor does one that only some layers have, alongside others with attention.
    """
    driver = EngineDriver(tiny_lab.load(path=write(tmp_path / "m.gguf"), slots=2, ctx=256))
    assert driver.engine._model.recurrent
    assert driver.engine._places.cache.cap == 0
    request = generate_request(SYSTEM, max_tokens=10, ignore_eos=True)
    (first,), (second,) = driver.run(request), driver.run(request)
    assert cached(driver, second) == 0
    assert driver.text(first) == driver.text(second)
    driver.engine.close()


def test_a_memory_that_fails_the_trial_goes_without(tiny_lab, monkeypatch):
    """Should a memory not cut or not share as it should, nothing is retained."""
    monkeypatch.setattr(lib, "llama_memory_seq_cp", lambda *_: None)
    driver = EngineDriver(tiny_lab.load(slots=2, ctx=256))
    assert driver.engine._places.cache.cap == 0
    driver.engine.close()


def test_a_window_that_lost_its_beginning_is_not_begun_with(tmp_path, tiny_lab):
    """A model with a sliding window shares what is whole, and drops what others have overwritten."""
    path = write_windowed(tmp_path / "windowed.gguf", window=16)
    plain = EngineDriver(tiny_lab.load(path=path, slots=2, ctx=512, ubatch=32, prefix_cells=0))
    driver = EngineDriver(tiny_lab.load(path=path, slots=2, ctx=512, ubatch=32, prefix_cells=400))
    assert driver.engine._places.memory.windowed
    requests = [
        generate_request(f"{SYSTEM * times}{end}", max_tokens=30, ignore_eos=True)
        for times in (1, 3, 5)
        for end in "ab"
    ] * 3
    texts = [plain.generate(request)[0] for request in requests]
    counts = []
    for request, text in zip(requests, texts, strict=True):
        (request_id,) = driver.run(request)
        assert driver.text(request_id) == text
        counts.append(cached(driver, request_id))
    assert any(counts)
    for each in (driver, plain):
        each.engine.close()


def test_what_others_have_overwritten_is_not_begun_with(tmp_path, tiny_lab):
    """Cells behind the window go to others: a prompt that begins like that is decoded again, and right."""
    path = write_windowed(tmp_path / "windowed.gguf", window=16)
    options = {"path": path, "slots": 2, "ctx": 512, "ubatch": 32, "flash_attn": True}
    plain, driver = (EngineDriver(tiny_lab.load(**options, prefix_cells=cells)) for cells in (0, 400))
    for prompt, tokens in ((SYSTEM * 4, 4), ("x" * 150, 30), ("y" * 150, 100), ("z" * 150, 30)):
        driver.generate(generate_request(prompt, max_tokens=tokens, ignore_eos=True))
    cache, cells = driver.engine._places.cache, driver.engine._model.memory
    gone = {sequence: lib.llama_memory_seq_pos_min(cells, sequence) for sequence in cache.retained}
    sequence, lost = max(gone.items(), key=lambda item: item[1])
    assert lost >= 16
    prompt = (*cache.tokens(sequence)[:lost].tolist(), FIRST_BYTE + ord("q"))
    request = generate_request(prompt_tokens=prompt, max_tokens=30, ignore_eos=True, logprobs=320)
    (here,), (there,) = driver.run(request), plain.run(request)
    assert cached(driver, here) < lost
    assert chances(driver, here) == pytest.approx(chances(plain, there), abs=1e-5)
    assert driver.text(here) == plain.text(there)
    for each in (driver, plain):
        each.engine.close()


LIGHTHOUSE = "The keeper of the lighthouse writes down every ship that passes. " * 5
ENDS = ("The first ship was", "At night she", "Her brother came to")


@pytest.mark.real
def test_a_real_model_says_the_same_with_flash_attention(real_lab):
    """Greedy and by seed, with a long beginning that was seen before, alone and side by side.

    Batches stay below the 64 tokens, and the cache below the 512 cells, from which llama.cpp takes
    other kernels.
    """
    options = {"slots": 4, "ctx": 2048, "flash_attn": True, "ubatch": 60}
    plain, driver = real_lab.driver(**options, prefix_cells=0), real_lab.driver(**options, prefix_cells=1024)
    for sampling in (Sampling(temperature=0.0), Sampling(seed=7)):
        requests = [
            generate_request(LIGHTHOUSE + end, max_tokens=32, sampling=sampling, ignore_eos=True)
            for end in ENDS
        ]
        texts = [plain.generate(request)[0] for request in requests]
        assert [driver.generate(request)[0] for request in requests] == texts
        ids = driver.run(*requests)
        assert [driver.text(request_id) for request_id in ids] == texts
        assert all(cached(driver, request_id) > 50 for request_id in ids)


@pytest.mark.real
def test_a_real_model_means_the_same_without_flash_attention(real_lab):
    """Sums of floats depend on the shape of a batch there; what they say does not."""
    options = {"slots": 4, "ctx": 2048, "flash_attn": False}
    plain, driver = real_lab.driver(**options, prefix_cells=0), real_lab.driver(**options, prefix_cells=1024)
    requests = [generate_request(LIGHTHOUSE + end, max_tokens=1, logprobs=5) for end in ENDS]
    for first, request in enumerate(requests):
        (here,), (there,) = driver.run(request), plain.run(request)
        assert first == 0 or cached(driver, here) > 50
        ours, theirs = chances(driver, here), chances(plain, there)
        both = ours.keys() & theirs.keys()
        assert len(both) >= 4
        assert all(abs(ours[token] - theirs[token]) < 0.5 for token in both)
