# SPDX-License-Identifier: GPL-3.0-only
"""Guesses from what followed before: against the plainest search, and how many they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modeld.engine.llama.sampling.prompt_lookup import (
    FIRST_GUESS,
    LONGEST,
    LONGEST_REST,
    SHORTEST,
    PromptLookup,
)

MOST = 8
texts = st.lists(st.integers(0, 3), max_size=60)


def reference(tokens, count):
    """Return what the text goes on with if it repeats itself, by the plainest means."""
    end = len(tokens)
    for length in range(LONGEST, SHORTEST - 1, -1):
        for place in range(end - 1, length - 1, -1):
            if length <= end and tokens[place - length : place] == tokens[end - length :]:
                period = end - place
                return [tokens[place + number % min(period, count)] for number in range(count)]
    return []


@given(texts, st.integers(0, MOST))
def test_a_guess_is_what_followed_the_same_tokens_last(tokens, most):
    """The longest end of the text that occurred before decides, and of its occurrences the last."""
    count = min(most, FIRST_GUESS)
    assert PromptLookup(tokens, MOST).guess(most) == (reference(tokens, count) if count else [])


@given(texts, st.lists(st.integers(0, 3), max_size=20))
def test_tokens_that_come_later_count_as_those_of_the_beginning(tokens, more):
    """It makes no difference when the text became known."""
    lookup = PromptLookup(tokens, MOST)
    for token in more:
        lookup.add(token)
    assert lookup.guess(MOST) == PromptLookup(tokens + more, MOST).guess(MOST)


@given(texts, st.lists(st.tuples(st.integers(0, MOST), st.integers(0, MOST)), max_size=60))
def test_no_guess_is_longer_than_it_may_be(tokens, outcomes):
    """Whatever came of the guesses before, the bounds of the text and of the step hold."""
    lookup = PromptLookup(tokens, 5)
    for most, right in outcomes:
        guess = lookup.guess(most)
        assert len(guess) <= min(most, 5)
        assert set(guess) <= set(tokens)
        if guess:
            lookup.learn(len(guess), min(right, len(guess)))


def test_guesses_that_come_true_become_longer():
    """Twice as many tokens each time, up to the most."""
    lookup = PromptLookup([1, 2] * 20, 16)
    lengths = []
    for _ in range(4):
        guess = lookup.guess(100)
        lengths.append(len(guess))
        lookup.learn(len(guess), len(guess))
    assert lengths == [4, 8, 16, 16]


def test_guesses_that_fail_become_short_and_rare():
    """After each failure a guess is half as long, and the rest until the next doubles; success ends that."""
    lookup = PromptLookup([1, 2] * 20, MOST)
    rests, lengths = [], []
    for _ in range(8):
        rest = 0
        while not (guess := lookup.guess(100)):
            rest += 1
        rests.append(rest)
        lengths.append(len(guess))
        lookup.learn(len(guess), 0)
    assert rests == [0, 1, 2, 4, 8, 16, 32, LONGEST_REST]
    assert lengths == [4, 2, 1, 1, 1, 1, 1, 1]
    while not (guess := lookup.guess(100)):
        pass
    lookup.learn(1, 1)
    assert len(lookup.guess(100)) == 2


def test_a_text_without_repetition_has_no_guess():
    """Nothing occurred before, so nothing is known to follow."""
    assert PromptLookup(range(1000), MOST).guess(MOST) == []
    assert PromptLookup([], MOST).guess(MOST) == []
    assert PromptLookup([7], MOST).guess(MOST) == []
