# SPDX-License-Identifier: GPL-3.0-only
"""A split KV cache in llama.cpp: texts, copies, and how it becomes one for a request that needs more."""

from __future__ import annotations

import numpy as np
import pytest
from support.engine_driver import EngineDriver, generate_request
from support.tiny_gguf import write_model

from modeld.domain.request_events import FinishReason
from modeld.engine.llama.kv.split_cache import order
from modeld.engine.llama.native.library import lib
from modeld.engine.protocol import RequestAdmitted, RequestDone, RequestFailed, TokenOutput
from modeld.errors import ModelFailed, PromptTooLong

LONG = "abcdefgh ijklmnop qrstuvwx " * 10


@pytest.fixture
def driver(tiny_lab):
    driver = EngineDriver(tiny_lab.load(slots=3, ctx=768, ubatch=32))
    yield driver
    driver.engine.close()


def wide(tiny_lab, tmp_path):
    """Return an engine whose shares are below the trained context."""
    path = write_model(tmp_path / "wide.gguf", context=1024)
    return EngineDriver(tiny_lab.load(path=path, slots=2, ctx=1024, ubatch=64))


def test_a_request_that_needs_more_than_its_share_gets_all_there_is(tiny_lab, tmp_path):
    """It waits for the one that runs, then the cache becomes one, and the texts stay the same."""
    driver = wide(tiny_lab, tmp_path)
    short = generate_request("hello", max_tokens=30, ignore_eos=True)
    text, _ = driver.generate(short)
    assert not driver.engine._model.layout.unified
    assert driver.engine.info.context == driver.engine.info.cells == 1024
    running = driver.submit(short)
    driver.until(TokenOutput, running)
    long = driver.submit(generate_request("x " * 200, max_tokens=800, ignore_eos=True))
    behind = driver.submit(short)
    driver.finish()
    assert driver.engine._model.layout.unified
    assert driver.last(long).usage.completion_tokens + driver.last(long).usage.prompt_tokens > 512
    assert driver.last(long).reason is FinishReason.LENGTH
    admitted = [output.id for output in driver.order if isinstance(output, RequestAdmitted)]
    assert admitted[-3:] == [running, long, behind]
    assert driver.text(running) == driver.text(behind) == text
    assert driver.generate(short)[0] == text
    driver.engine.close()


def test_an_interrupt_while_the_cache_becomes_one_costs_no_prefix_cache(tiny_lab, tmp_path):
    """A cancel of somebody else that comes right then does not pass for a memory that cannot be shared."""
    driver = wide(tiny_lab, tmp_path)
    long = generate_request("x " * 200, max_tokens=800, ignore_eos=True)
    driver.submit(long)
    driver.engine.interrupt()
    driver.finish()
    assert driver.engine._model.layout.unified
    assert driver.generate(long)[1].usage.cached_tokens > 200
    driver.engine.close()


def test_explicit_shares_are_the_context_of_a_request(tmp_path, tiny_lab):
    """A prompt that is too long for its share is refused with the numbers; an answer ends there."""
    path = write_model(tmp_path / "wide.gguf", context=1024)
    driver = EngineDriver(tiny_lab.load(path=path, slots=2, ctx=1024, ubatch=64, kv_unified=False))
    assert (driver.engine.info.context, driver.engine.info.cells) == (512, 1024)
    _, last = driver.generate(generate_request("x " * 600))
    assert isinstance(last, RequestFailed)
    assert last.problem.kind == PromptTooLong.kind
    _, last = driver.generate(generate_request("hello", max_tokens=2000, ignore_eos=True))
    assert last.usage.prompt_tokens + last.usage.completion_tokens == 512
    driver.engine.close()


def test_a_cache_that_cannot_be_made_anew_is_said_and_ends_the_engine(tiny_lab, tmp_path, monkeypatch):
    """No memory for the new context: the owner is told, and `close` still works."""
    driver = wide(tiny_lab, tmp_path)
    driver.submit(generate_request("x " * 200, max_tokens=800))
    monkeypatch.setattr(lib, "llama_init_from_model", lambda *_: None)
    with pytest.raises(ModelFailed, match="1024 KV cells"):
        driver.finish()
    driver.engine.close()


def test_random_requests_leave_the_memory_as_the_accounts_say(driver, tiny_lab):
    """Whatever is submitted, cancelled and interrupted, each slot holds what is known of it."""
    chooser = np.random.default_rng(3)
    prompts = [LONG[:length] + end for length in (20, 90, 180) for end in ("", "x", "yz")]
    plain = tiny_lab.driver(slots=3, ctx=768, ubatch=32, prefix_cells=0, kv_unified=True)
    texts = {
        prompt: plain.generate(generate_request(prompt, max_tokens=24, ignore_eos=True))[0]
        for prompt in prompts
    }
    asked = {}
    for _ in range(300):
        match int(chooser.integers(5)):
            case 0:
                prompt = prompts[int(chooser.integers(len(prompts)))]
                asked[driver.submit(generate_request(prompt, max_tokens=24, ignore_eos=True))] = prompt
            case 1 if asked and chooser.random() < 0.3:
                driver.engine.cancel(list(asked)[int(chooser.integers(len(asked)))])
            case 2:
                driver.engine.interrupt()
            case _:
                driver.step()
    driver.finish()
    assert any(driver.last(request_id).usage.cached_tokens for request_id in asked)
    whole = [request_id for request_id in asked if driver.last(request_id).reason is FinishReason.LENGTH]
    assert whole
    for request_id in asked:
        assert isinstance(driver.last(request_id), RequestDone)
    same = sum(driver.text(request_id) == texts[asked[request_id]] for request_id in whole)
    assert same == len(whole)
    cache, memory = driver.engine._places.cache, driver.engine._places.memory
    for slot in range(3):
        kept = len(cache.tokens(slot)) if slot in cache.retained else 0
        assert memory.length(slot) == kept


@pytest.mark.parametrize("more", [{"slots": 1}, {"slots": 2, "kv_unified": True}, {"slots": 2}], ids=str)
def test_a_batch_of_a_token_or_two_is_enough(tiny_lab, more):
    """The trial of the memory fits into it; the text is that of large batches, with a beginning retained."""
    request = generate_request("hello there", max_tokens=10, ignore_eos=True)
    text, _ = tiny_lab.driver(slots=1, ctx=512).generate(request)
    driver = EngineDriver(tiny_lab.load(ctx=512, ubatch=1, **more))
    assert driver.generate(request)[0] == text
    again, last = driver.generate(request)
    assert again == text
    assert last.usage.cached_tokens > 0
    driver.engine.close()


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
