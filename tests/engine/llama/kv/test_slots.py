# SPDX-License-Identifier: GPL-3.0-only
"""Bookkeeping of slots and cells, and the rule for prefill chunks: pure, without llama.cpp."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.engine.llama.kv.slots import Slots
from modeld.engine.llama.prefill import (
    CEILING_S,
    FIRST,
    FIRST_TOKEN,
    FLOOR_S,
    LONGEST_S,
    PASS,
    SMALLEST,
    STRETCH,
    TILE,
    ChunkRule,
    shares,
)


@given(
    st.integers(1, 5),
    st.integers(1, 200),
    st.lists(st.tuples(st.booleans(), st.integers(1, 150)), max_size=40),
)
def test_reserved_cells_never_exceed_what_there_is(count, cells, moves):
    """Whatever is taken and given back, slots are distinct and cells are not sold twice."""
    slots = Slots(count, cells)
    held = {}
    for take, number in moves:
        if take:
            slot = slots.take(number)
            assert (slot is None) == (number > slots.free_cells or slots.busy == count) or slot is not None
            if slot is not None:
                assert slot not in held
                held[slot] = number
        elif held:
            slot = list(held)[number % len(held)]
            slots.give_back(slot)
            del held[slot]
        assert slots.busy == len(held) <= count
        assert slots.free_cells == cells - sum(held.values()) >= 0


def test_without_a_free_slot_or_cells_nothing_is_taken():
    """A refusal changes nothing."""
    slots = Slots(1, 100)
    assert slots.take(101) is None
    assert slots.take(60) == 0
    assert slots.take(10) is None
    assert slots.free_cells == 40


def test_giving_back_what_was_not_taken_is_a_defect():
    """The second return of a slot is an error."""
    slots = Slots(2, 100)
    with pytest.raises(KeyError):
        slots.give_back(0)


def alongside(usual: float, tokens: int, token_s: float) -> float:
    """Return the seconds of a step of streams with a chunk: that has a pass of its own."""
    return usual + (tokens + PASS) * token_s


def test_alone_a_prompt_goes_in_whole_batches():
    """Nothing else decodes: the chunk is the batch, whatever was measured."""
    rule = ChunkRule(512)
    rule.learn(4, 100, 10.0)
    assert rule.budget(0) == 512


def test_alone_a_slow_prompt_goes_in_chunks_that_show_life():
    """No chunk takes longer than some seconds, by the first guess and then by what was measured."""
    rule = ChunkRule(512, 0.5)
    assert rule.budget(0) == LONGEST_S / 0.5
    rule.learn(0, 10, 1.0)
    assert rule.budget(0) == LONGEST_S / 0.1
    for _ in range(50):
        rule.learn(0, 50, 500.0)
    assert rule.budget(0) == SMALLEST
    assert ChunkRule(512, 1e-9).budget(0) == 512


def test_beside_streams_a_chunk_takes_the_time_that_is_left():
    """A chunk stretches the step to the bound, to the nearest tile: it may be half of one beyond."""
    rule = ChunkRule(512)
    for _ in range(50):
        rule.learn(4, 0, 0.02)
        rule.learn(4, 10, alongside(0.02, 10, 0.001))
    chunk = rule.budget(4)
    assert alongside(0.02, chunk, 0.001) == pytest.approx(max(FLOOR_S, STRETCH * 0.02), abs=TILE / 2 * 0.0011)
    assert chunk == 32


@pytest.mark.parametrize("measured", [8, 12, 16, 32])
def test_small_chunks_and_large_ones_teach_the_same(measured: int):
    """A pass has a price of its own: eight tokens take longer each than twelve: no reason to stay."""
    rule = ChunkRule(512)
    for _ in range(50):
        rule.learn(4, 0, 0.0171)
        rule.learn(4, measured, alongside(0.0171, measured, 0.0021))
    assert rule.budget(4) == 12


def test_a_machine_that_stood_still_once_changes_little():
    """A step that took ten times as long makes the next chunk a third smaller at most; a second counts."""
    rule = ChunkRule(512)
    for _ in range(50):
        rule.learn(4, 0, 0.2)
        rule.learn(4, 100, alongside(0.2, 100, 0.003))
    before = rule.budget(4)
    rule.learn(4, 100, 10 * alongside(0.2, 100, 0.003))
    assert 2 * before / 3 <= rule.budget(4) < before
    rule.learn(4, 100, 10 * alongside(0.2, 100, 0.003))
    assert rule.budget(4) < before / 3


def test_the_usual_step_is_that_of_as_many_streams():
    """What one stream takes says nothing of eight, and a prompt's steps nothing of the usual one."""
    rule = ChunkRule(512)
    for _ in range(50):
        rule.learn(1, 0, 0.02)
        rule.learn(8, 0, 0.1)
        rule.learn(8, 40, alongside(0.1, 40, 0.001))
    assert rule.budget(8) == pytest.approx((STRETCH - 1) * 0.1 / 0.001 - PASS, abs=TILE / 2 + 0.1)
    assert rule.budget(1) == pytest.approx((STRETCH - 1) * 0.02 / 0.001 - PASS, abs=TILE / 2 + 0.1)


def test_what_a_prompt_takes_alone_is_the_first_guess_beside_streams():
    """The first chunk alongside streams is no leap in the dark once a prompt was decoded."""
    rule = ChunkRule(512)
    assert rule.budget(4) == FIRST
    rule.learn(0, 512, 0.512)
    rule.learn(4, 0, 0.04)
    assert rule.budget(4) == pytest.approx((STRETCH - 1) * 0.04 / 0.001 - PASS, abs=TILE / 2 + 0.1)


def test_many_prompts_beside_few_streams_may_take_longer():
    """Fifteen that wait for a first token weigh more than one that waits for the next, up to the ceiling."""
    rule = ChunkRule(512)
    for _ in range(50):
        rule.learn(1, 0, 0.02)
        rule.learn(1, 40, alongside(0.02, 40, 0.001))
    weighted = ((1 + FIRST_TOKEN) * STRETCH - 1) * 0.02
    assert rule.budget(1, 2) == pytest.approx(
        min(weighted, CEILING_S - 0.02) / 0.001 - PASS, abs=TILE / 2 + 0.1
    )
    assert rule.budget(1, 15) == pytest.approx((CEILING_S - 0.02) / 0.001 - PASS, abs=TILE / 2 + 0.1)
    assert rule.budget(8, 2) == rule.budget(8, 1)
    assert rule.budget(8, 3) > rule.budget(8, 1)


@given(st.lists(st.integers(1, 4000), max_size=16), st.integers(1, 512))
def test_every_step_moves_the_oldest_prompt_by_its_part(rests, budget):
    """Nothing is granted twice or to excess, nothing is left over, and none starves."""
    granted = shares(rests, budget)
    assert sum(granted) == min(budget, sum(rests))
    assert all(0 <= tokens <= rest for tokens, rest in zip(granted, rests, strict=True))
    if rests:
        assert granted[0] >= min(rests[0], budget // len(rests))


def test_a_short_prompt_does_not_wait_for_a_long_one():
    """It is decoded whole with the next step; the long ones go on in the order of their arrival."""
    assert shares([3000, 20, 2000, 5], 400) == [375, 20, 0, 5]


def test_prompts_of_one_length_go_one_after_another():
    """Fifteen first tokens now and one later are better than sixteen later."""
    assert shares([33] * 16, 512) == [33] * 15 + [17]


def test_prompts_that_arrive_for_ever_do_not_starve_a_long_one():
    """With three short ones alongside it in every step, the long one gets its part."""
    left, steps = 3000, 0
    while left:
        left -= shares([left, 100, 100, 100], 400)[0]
        steps += 1
    assert steps == 30


def test_a_prefill_always_moves():
    """However slow a prompt token is, some go with every step."""
    rule = ChunkRule(512)
    for _ in range(50):
        rule.learn(1, 0, 0.2)
        rule.learn(1, 16, 5.0)
    assert rule.budget(1) == SMALLEST


@given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 512), st.floats(0, 100))), st.integers(0, 16))
def test_a_chunk_always_fits_the_batch(steps, decoding):
    """Whatever was measured, the chunk is at least one token and leaves room for the streams."""
    rule = ChunkRule(512)
    for streams, prompt_tokens, seconds in steps:
        rule.learn(streams, prompt_tokens, seconds)
    assert 1 <= rule.budget(decoding) <= 512 - decoding
