# SPDX-License-Identifier: GPL-3.0-only
"""Samplers over logits that a test writes into the tiny model's own rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.logits_row import FREE, GREEDY, LogitsRow

from modeld.domain.request import Sampling
from modeld.engine.llama.native.library import lib
from modeld.errors import InvalidRequest


@pytest.fixture
def row(tiny_lab):
    engine = tiny_lab.driver(slots=2, ctx=512, ubatch=64, prefix_cells=0).engine
    yield LogitsRow(engine)
    engine._places.memory.clear()


def test_greedy_takes_the_token_that_the_chain_takes(row):
    """Also among equals, of which there are many here, and with biases; the logits stay as they were."""
    random = np.random.default_rng(1)
    for _ in range(200):
        row.logits[:] = random.integers(0, 8, row.vocab.size)
        before = row.logits.copy()
        assert row.sample(GREEDY) == row.greedy_in_c()
        biases = tuple((int(token), float(bias)) for token, bias in random.integers(-4, 4, (20, 2)) % 300)
        biases = tuple(dict(biases).items())
        biased = Sampling(temperature=0.0, logit_bias=biases)
        assert row.sample(biased) == row.greedy_in_c(biases)
        assert (row.logits == before).all()


def test_greedy_needs_no_chain(row, monkeypatch):
    """The usual greedy request costs no copy of the logits in C, with banned tokens neither."""
    monkeypatch.setattr(lib, "llama_sampler_sample", None)
    row.logits[:] = 0
    row.logits[[7, 9, 11]] = (3, 2, 1)
    assert row.sample(GREEDY) == 7
    assert row.sample(Sampling(temperature=0.0, logit_bias=((7, -math.inf), (11, 1.5)))) == 11
    (end,) = row.vocab.end_tokens
    row.logits[end] = 9
    assert row.sample(GREEDY) == end
    assert row.sample(GREEDY, ignore_end=True) == 7


def test_a_text_that_is_biased_often_is_tokenized_once(row, monkeypatch):
    """Biases are summed all the same; a thousand of them keep no stream waiting."""
    calls: list[str] = []
    tokenize = row.vocab.tokenize

    def counted(_vocab, text, **how):
        calls.append(text)
        return tokenize(text, **how)

    monkeypatch.setattr(type(row.vocab), "tokenize", counted)
    row.logits[:] = 0
    biased = set(tokenize("a", add_special=False, parse_special=False).tolist())
    other = next(token for token in range(row.vocab.size) if token not in biased)
    row.logits[other] = 2.5
    assert row.sample(Sampling(temperature=0.0, logit_bias=(("a", 1.0),) * 2)) == other
    assert row.sample(Sampling(temperature=0.0, logit_bias=(("a", 1.0),) * 3)) in biased
    assert calls == ["a", "a"]


@pytest.mark.parametrize("places", [[0], [5], [5, 200], list(range(300))])
def test_a_logit_that_is_no_number_is_not_taken(row, places):
    """What llama.cpp makes of broken logits is what comes out; its token is one of the vocabulary."""
    row.logits[:] = 0
    row.logits[17] = 1
    row.logits[places] = math.nan
    assert row.sample(GREEDY) == row.greedy_in_c()
    biased = Sampling(temperature=0.0, logit_bias=((3, 0.5),))
    assert row.sample(biased) == row.greedy_in_c(((3, 0.5),))


THREE = {"t5": math.log(0.5), "t6": math.log(0.3), "t7": math.log(0.2)}


@pytest.mark.parametrize(
    ("narrow", "kept"),
    [
        ({"top_k": 1}, {5}),
        ({"top_k": 2}, {5, 6}),
        ({"top_k": 3}, {5, 6, 7}),
        ({"top_p": 0.4}, {5}),
        ({"top_p": 0.7}, {5, 6}),
        ({"top_p": 0.9}, {5, 6, 7}),
        ({"min_p": 0.7}, {5}),
        ({"min_p": 0.5}, {5, 6}),
        ({"min_p": 0.3}, {5, 6, 7}),
        ({"typical_p": 0.2}, {6}),
        ({"typical_p": 0.7}, {5, 6}),
        ({"typical_p": 0.9}, {5, 6, 7}),
    ],
    ids=str,
)
def test_a_truncation_keeps_the_tokens_that_its_definition_names(row, narrow, kept):
    """Of chances of 50, 30 and 20 %: so many, up to a sum, near the best, or near the expected surprise."""
    row.set_logits(**THREE)
    assert set(row.draw(Sampling(**FREE | narrow, seed=1), 100)) == kept


def test_the_temperature_sharpens_and_flattens(row):
    """Of 300 draws the best token has 50 % at 1, 92 % far below and 35 % far above."""
    row.set_logits(**THREE)
    for temperature, chance in ((1.0, 0.5), (0.2, 0.921), (10.0, 0.350)):
        drawn = row.draw(Sampling(**FREE | {"temperature": temperature}, seed=1), 300)
        assert drawn.count(5) / 300 == pytest.approx(chance, abs=0.1)


def test_top_n_sigma_keeps_what_is_near_the_highest(row):
    """Tokens that many standard deviations below the highest logit are left out."""
    row.logits[:] = 0.0
    row.logits[[5, 6, 7]] = (8.0, 7.9, 4.0)
    assert set(row.draw(Sampling(**FREE, top_n_sigma=1.0, seed=1), 60)) == {5, 6}
    assert set(row.draw(Sampling(**FREE, seed=1), 60)) > {5, 6}


def test_xtc_leaves_out_the_most_probable(row):
    """Of the tokens above the threshold only the least probable stays, as often as asked for."""
    row.set_logits(t5=3.0, t6=2.9, t7=2.8)
    assert set(row.draw(Sampling(**FREE, xtc_probability=1.0, seed=1), 30)) == {7}
    assert set(row.draw(Sampling(**FREE, xtc_probability=0.5, seed=1), 60)) == {5, 6, 7}
    assert set(row.draw(Sampling(**FREE, xtc_probability=1.0, xtc_threshold=0.4, seed=1), 60)) == {5, 6, 7}


def test_a_dynamic_temperature_follows_the_entropy(row):
    """Where one token is nearly certain the temperature is low, where many are possible it is high."""
    row.set_logits(t5=10.0, t6=5.0)
    hot = FREE | {"temperature": 5.0}
    assert set(row.draw(Sampling(**hot, seed=1), 60)) == {5, 6}
    assert set(row.draw(Sampling(**hot, dynatemp_range=5.0, seed=1), 60)) == {5}
    row.logits[:] = 1.0
    assert len(set(row.draw(Sampling(**hot, dynatemp_range=5.0, seed=1), 60))) > 20


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_keeps_to_its_surprise(row, version):
    """With a target of nothing only the most probable token is drawn, with a high one many are."""
    row.follow_zipf()
    for tau, few in ((0.0, True), (9.0, False)):
        seen = set(row.draw(Sampling(temperature=1.0, mirostat=version, mirostat_tau=tau, seed=1), 60))
        assert (len(seen) <= 2) == few
    slow = Sampling(temperature=1.0, mirostat=version, mirostat_tau=2.0, mirostat_eta=0.0, seed=1)
    fast = Sampling(temperature=1.0, mirostat=version, mirostat_tau=2.0, mirostat_eta=1.0, seed=1)
    assert row.draw(slow, 60) != row.draw(fast, 60)


def test_each_version_of_mirostat_is_llama_cpps(row):
    """They draw what llama.cpp's own draw after the temperature, and not the same."""
    row.follow_zipf()
    tau, eta, seed = 3.0, 0.2, 11
    ours = [
        row.draw(
            Sampling(temperature=1.5, mirostat=version, mirostat_tau=tau, mirostat_eta=eta, seed=seed), 40
        )
        for version in (1, 2)
    ]
    first = lib.llama_sampler_init_mirostat(row.vocab.size, seed, tau, eta, 100)
    second = lib.llama_sampler_init_mirostat_v2(seed, tau, eta)
    theirs = [row.draw_in_c(40, lib.llama_sampler_init_temp(1.5), last) for last in (first, second)]
    assert ours == theirs
    assert ours[0] != ours[1]


DRY = {"temperature": 0.0, "dry_multiplier": 5.0}


def test_dry_does_not_prolong_a_repetition(row):
    """The token that followed the same tokens before loses, unless a breaker stands between."""
    row.set_logits(t50=5.0, t60=4.0)
    line = row.vocab.tokenize("\n", add_special=False, parse_special=False)[-1]
    assert row.sample(Sampling(temperature=0.0), [70, 71, 50, 70, 71]) == 50
    assert row.sample(Sampling(**DRY), [70, 71, 50, 70, 71]) == 60
    assert row.sample(Sampling(**DRY), [70, 50, 71]) == 50
    assert row.sample(Sampling(**DRY, dry_allowed_length=3), [70, 71, 50, 70, 71]) == 50
    assert row.sample(Sampling(**DRY, dry_penalty_last_n=4), [70, 71, 50, 70, 71]) == 50
    assert row.sample(Sampling(**DRY, dry_penalty_last_n=-1), [70, 71, 50, *range(80, 170), 70, 71]) == 60
    assert row.sample(Sampling(**DRY), [70, line, 50, 70, line]) == 50
    assert row.sample(Sampling(**DRY, dry_sequence_breakers=()), [70, line, 50, 70, line]) == 60


def test_dry_knows_the_answer_too(row):
    """What is generated counts as the prompt does: a repetition is cut when it is too long."""
    row.set_logits(t50=5.0, t60=4.0)
    assert row.draw(Sampling(**DRY), 6) == [50, 50, 50, 60, 50, 50]


@pytest.mark.parametrize(("last_n", "token"), [(0, 50), (3, 50), (4, 60), (64, 60), (-1, 60), (10**9, 60)])
def test_penalties_look_back_so_far(row, last_n, token):
    """`repeat_last_n` tokens count, those of the prompt too."""
    row.set_logits(t50=5.0, t60=4.0)
    sampling = Sampling(temperature=0.0, presence_penalty=3.0, repeat_last_n=last_n)
    assert row.sample(sampling, [50, 70, 71, 72]) == token


@pytest.mark.parametrize(
    ("penalties", "before", "logits", "token"),
    [
        ({"repeat_penalty": 1.2}, 1, (5.0, 4.0), 50),
        ({"repeat_penalty": 1.3}, 1, (5.0, 4.0), 60),
        ({"repeat_penalty": 1.2}, 9, (5.0, 4.0), 50),
        ({"repeat_penalty": 2.0}, 1, (-1.0, -1.5), 60),
        ({"repeat_penalty": 0.5}, 1, (4.0, 5.0), 50),
        ({"frequency_penalty": 0.4}, 2, (5.0, 4.0), 50),
        ({"frequency_penalty": 0.4}, 3, (5.0, 4.0), 60),
        ({"frequency_penalty": -0.4}, 3, (4.0, 5.0), 50),
        ({"presence_penalty": 0.4}, 9, (5.0, 4.0), 50),
        ({"presence_penalty": 1.1}, 1, (5.0, 4.0), 60),
        ({"presence_penalty": -1.1}, 1, (4.0, 5.0), 50),
        ({"presence_penalty": 0.7, "frequency_penalty": 0.2}, 1, (5.0, 4.0), 50),
        ({"presence_penalty": 0.7, "frequency_penalty": 0.2}, 2, (5.0, 4.0), 60),
    ],
)
def test_each_penalty_counts_as_it_is_defined(row, penalties, before, logits, token):
    """A factor once, a sum for each time, a sum once; token 50 came `before` so many times, 60 never did."""
    row.set_logits(t50=logits[0], t60=logits[1])
    assert row.sample(Sampling(temperature=0.0, **penalties), [50] * before) == token


@pytest.mark.parametrize(
    "more",
    [
        {"xtc_probability": 0.5},
        {"mirostat": 1},
        {"mirostat": 2},
        {"dynatemp_range": 0.5, "top_n_sigma": 3.0},
        {"dry_multiplier": 0.8},
    ],
)
def test_the_same_seed_draws_the_same(row, more):
    """Whatever else a chain has, its seed decides."""
    row.follow_zipf()
    drawn = [row.draw(Sampling(**FREE | more, seed=seed), 40) for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "more",
    [
        {"mirostat": 3},
        {"mirostat_tau": math.nan},
        {"top_n_sigma": math.inf},
        {"xtc_probability": -1.0},
        {"dynatemp_range": 1.5},
        {"dry_base": math.nan},
        {"dry_multiplier": math.inf},
        {"dry_sequence_breakers": ("x",) * 9},
        {"dry_sequence_breakers": ("",)},
        {"dry_sequence_breakers": ("a\0b",)},
        {"dry_sequence_breakers": ("€" * 14,)},
    ],
)
def test_what_llama_cannot_be_given_is_refused(row, more):
    """Values that are not finite or out of range end as a refusal that names them."""
    with pytest.raises(InvalidRequest) as caught:
        row.sample(Sampling(**FREE | more))
    assert next(iter(more)) in caught.value.message


@pytest.mark.parametrize(
    "more",
    [
        {"mirostat": 1, "mirostat_tau": 0.0, "mirostat_eta": 1e30},
        {"mirostat": 2, "mirostat_tau": 1e30, "mirostat_eta": 1e30},
        {"dynatemp_range": 1.0, "dynatemp_exponent": 1e30},
        {"xtc_probability": 1e30, "xtc_threshold": 0.0},
        {"top_n_sigma": 1e-30},
        {"dry_multiplier": 1e30, "dry_base": 1e30, "dry_allowed_length": -5, "dry_penalty_last_n": 2**31 - 1},
        {"repeat_last_n": 2**31 - 1, "presence_penalty": 1e30},
    ],
)
def test_extreme_values_still_draw(row, more):
    """What is finite is survived, with one candidate left and with all."""
    for banned in (0, row.vocab.size - 1):
        bias = tuple((token, -math.inf) for token in range(banned))
        for token in row.draw(Sampling(**FREE | more, logit_bias=bias, seed=1), 5, [5, 6, 5, 6]):
            assert 0 <= token < row.vocab.size
